"""One optimizer step: micro-batches, precision, gradient clipping, and what to do when the numbers are not finite."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from detectron2.engine import TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mask2former.engine.optimizer import GradientClipper
from mask2former.engine.seeding import seed_step
from mask2former.modeling.targets import sample_name

__all__ = ["MAX_SKIPPED_IN_A_ROW", "TrainLoop"]

#: Steps with non-finite numbers, one after the other, that end the run.
MAX_SKIPPED_IN_A_ROW = 10

MicroBatch = list[dict[str, Any]]


class _Report(NamedTuple):
    """Figures of one step, averaged over ranks, on the host."""

    losses: dict[str, float]
    gradient_norm: float
    data_time: float
    is_finite: bool


class TrainLoop(TrainerBase):
    """Detectron2's inner trainer (`SimpleTrainer`, `AMPTrainer`) for this project.

    Differences: it runs on CPU and CUDA, in float32, fp16 or bf16; a step may consist of several micro-batches; a step
    whose losses or gradients are not finite changes nothing, is counted, and its images are named; every step starts
    its random numbers from (seed, step, rank). Losses and gradient norm reach the host in one copy.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        clip_gradients: GradientClipper,
        seed: int,
        autocast_dtype: torch.dtype | None = None,
        accumulation_steps: int = 1,
    ) -> None:
        super().__init__()
        model.train()
        self.model = model
        self.optimizer = optimizer
        self.data_loader: Iterable[MicroBatch] | None = None
        self.seed = seed
        self.last_batch: MicroBatch = []  # for the example pictures
        self.num_skipped = 0
        self._batches: Iterator[MicroBatch] | None = None
        self._clip_gradients = clip_gradients
        self._accumulation_steps = accumulation_steps
        self._device = next(model.parameters()).device
        self._autocast_dtype = autocast_dtype
        # bf16 has the exponents of float32: only fp16 needs its loss scaled.
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=autocast_dtype == torch.float16)
        self._num_skipped_in_a_row = 0
        self._logger = logging.getLogger(__name__)

    def start(self, data_loader: Iterable[MicroBatch]) -> None:
        """Take micro-batches from this loader from now on."""
        self.data_loader = data_loader
        self._batches = iter(data_loader)

    def run_step(self) -> None:
        assert self.model.training, "a hook has left the model in eval mode"
        assert self._batches is not None, "start() has not been called"
        started = time.perf_counter()
        micro_batches = [next(self._batches) for _ in range(self._accumulation_steps)]
        data_time = time.perf_counter() - started
        self.last_batch = micro_batches[0]
        seed_step(self.seed, self.iter, comm.get_rank())

        self.optimizer.zero_grad(set_to_none=True)
        names, losses = self._forward_backward(micro_batches)
        self._scaler.unscale_(self.optimizer)
        gradient_norm = self._clip_gradients(self.model.parameters())
        report = self._report(names, torch.stack(losses).sum(dim=0), gradient_norm, data_time)
        if report.is_finite:
            self._num_skipped_in_a_row = 0
            self._scaler.step(self.optimizer)  # on its own leaves out a step whose scaled gradients overflowed fp16
        else:
            self._skip_step(micro_batches, losses)
        self._scaler.update()
        self._write(report)

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "grad_scaler": self._scaler.state_dict(),
            "num_skipped": self.num_skipped,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])
        if state_dict.get("grad_scaler"):  # empty when the run had no fp16
            self._scaler.load_state_dict(state_dict["grad_scaler"])
        self.num_skipped = state_dict.get("num_skipped", 0)

    def _forward_backward(self, micro_batches: list[MicroBatch]) -> tuple[list[str], list[Tensor]]:
        """Accumulate gradients over the micro-batches.

        Returns:
            The names of the losses, and per micro-batch their values on the device; over micro-batches they add up to
            the losses of the joined batch.
        """
        arguments: dict[str, Any] = {}
        scale = 1.0
        if len(micro_batches) > 1:
            loss_normalizer = getattr(self._plain_model, "loss_normalizer", None)
            if callable(loss_normalizer):
                arguments["normalizer"] = loss_normalizer(micro_batches)
            else:  # a meta-architecture that averages over its batch, such as Detectron2's SemanticSegmentor
                scale = 1.0 / len(micro_batches)
        names: list[str] = []
        values: list[Tensor] = []
        for index, batch in enumerate(micro_batches):
            is_last = index == len(micro_batches) - 1
            with self._without_synchronization(not is_last):
                with torch.autocast(
                    self._device.type, dtype=self._autocast_dtype, enabled=self._autocast_dtype is not None
                ):
                    losses = self.model(batch, **arguments)
                names = list(losses)
                stacked = torch.stack([loss.float() for loss in losses.values()]) * scale
                self._scaler.scale(stacked.sum()).backward()
            values.append(stacked.detach())
        return names, values

    @property
    def _plain_model(self) -> nn.Module:
        return self.model.module if isinstance(self.model, DistributedDataParallel) else self.model

    def _without_synchronization(self, skip: bool) -> AbstractContextManager[None]:
        # Ranks exchange gradients once per step, in the backward pass of the last micro-batch.
        return self.model.no_sync() if skip and isinstance(self.model, DistributedDataParallel) else nullcontext()

    def _report(self, names: list[str], losses: Tensor, gradient_norm: Tensor, data_time: float) -> _Report:
        figures = torch.cat([losses, gradient_norm.reshape(1).to(losses), losses.new_tensor([data_time])])
        if comm.get_world_size() > 1:
            dist.all_reduce(figures)
            figures /= comm.get_world_size()
        *loss_values, norm, mean_data_time = figures.tolist()
        is_finite = all(math.isfinite(value) for value in loss_values)
        if is_finite and not math.isfinite(norm):
            # In fp16 the scale may be too high, which is the scaler's business until it has come down to 1.
            is_finite = self._scaler.is_enabled() and self._scaler.get_scale() > 1
        return _Report(dict(zip(names, loss_values, strict=True)), norm, mean_data_time, is_finite)

    def _skip_step(self, micro_batches: list[MicroBatch], losses: list[Tensor]) -> None:
        """Forget the gradients, count, and name the images; every rank comes here in the same step."""
        self.optimizer.zero_grad(set_to_none=True)
        self.num_skipped += 1
        self._num_skipped_in_a_row += 1
        culprits = [batch for batch, values in zip(micro_batches, losses, strict=True) if not values.isfinite().all()]
        named = [sample_name(sample) for batch in culprits for sample in batch]
        named_on_all_ranks = [name for names in comm.all_gather(named) for name in names]
        where = ", ".join(named_on_all_ranks) or "the gradients of finite losses"
        self._logger.warning(
            f"Step {self.iter} is skipped ({self.num_skipped} so far): NaN or infinity in the losses of {where}"
        )
        if self._num_skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise RuntimeError(
                f"{self._num_skipped_in_a_row} steps in a row had losses or gradients that are not finite, the last "
                f"one at iteration {self.iter} with {where}. Look at these images and their annotations, lower "
                'SOLVER.BASE_LR, or set SOLVER.AMP.PRECISION to "bf16".'
            )

    def _write(self, report: _Report) -> None:
        if not comm.is_main_process():
            return
        storage = get_event_storage()
        storage.put_scalar("data_time", report.data_time)
        if report.is_finite:
            storage.put_scalar("total_loss", sum(report.losses.values()))
            storage.put_scalars(**report.losses)
        if math.isfinite(report.gradient_norm):
            storage.put_scalar("grad_norm", report.gradient_norm)
        num_broken = getattr(self.data_loader, "num_skipped", 0)  # DATALOADER.SKIP_BROKEN
        if num_broken:
            storage.put_scalar("broken_samples", num_broken, smoothing_hint=False)
        if self.num_skipped:
            storage.put_scalar("skipped_steps", self.num_skipped, smoothing_hint=False)
