"""The training step of the two implementations: forward, loss, backward and optimizer on the same batch.

Both train the same parameters with the same optimizer and clipping. Pictures and targets are on the device beforehand,
transformers' also normalized and in float32 as it takes them. Its ResNet would update the statistics of its batch
norms, which ours keeps as they were pre-trained: they are frozen there, too.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from mask2former.analysis import count_costs
from mask2former.benchmark.sides import Side, autocast, checked, padded, prepared_config, transformers_model
from mask2former.benchmark.workload import Workload, training_samples
from mask2former.engine.optimizer import build_gradient_clipper, build_optimizer
from mask2former.modeling.checkpoint import MaskFormerCheckpointer

__all__ = ["OurTraining", "TransformersTraining"]


class _Training(Side):
    def __init__(self, cfg: CfgNode, workload: Workload, model: nn.Module) -> None:
        self.model = model
        self.device = torch.device(cfg.MODEL.DEVICE)
        if workload.precision == "fp16" and self.device.type != "cuda":
            raise ValueError("--precision fp16 needs a GPU to train; choose fp32 or bf16")
        self.stopwatch = self._stopwatch(workload)
        self.stopwatch.watch(self, "_losses", "forward")
        self._workload = workload
        self._num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        self._optimizer = build_optimizer(cfg, model)
        self._clip_gradients = build_gradient_clipper(cfg)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=workload.precision == "fp16")

    def run(self) -> None:
        stage = self.stopwatch.stage
        with stage("rest"):
            with autocast(self.device, self._workload):
                loss = self._losses()
            with stage("backward"):
                self._scaler.scale(loss).backward()
            with stage("optimizer"):
                self._scaler.unscale_(self._optimizer)
                self._clip_gradients(self.model.parameters())
                self._scaler.step(self._optimizer)
                self._scaler.update()
                self._optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def outputs(self) -> dict[str, Tensor]:
        with autocast(self.device, self._workload):
            return {"loss": self._losses()}

    @abstractmethod
    def _losses(self) -> Tensor:
        """The sum of all losses."""


class OurTraining(_Training):
    """This project's model, criterion and optimizer."""

    def __init__(self, cfg: CfgNode, workload: Workload) -> None:
        cfg = prepared_config(cfg, workload)
        model = checked(build_model(cfg))
        MaskFormerCheckpointer.from_config(cfg, model, starts_training=True).load(cfg.MODEL.WEIGHTS, [])
        super().__init__(cfg, workload, model.train())
        self.stopwatch.watch(model.criterion, "forward", "loss")
        self._samples = training_samples(workload, self._num_classes)
        for sample in self._samples:
            sample["image"] = sample["image"].to(self.device)
            sample["instances"].gt_masks = sample["instances"].gt_masks.to(self.device)

    def flops(self) -> int:
        self.model.eval()
        costs = count_costs(self.model, self._samples)
        self.model.train()
        return sum(count for part, count in costs.flops_by_part().items() if part)

    def _losses(self) -> Tensor:
        return torch.stack([loss.float() for loss in self.model(self._samples).values()]).sum()


class TransformersTraining(_Training):
    """transformers' model with its own loss."""

    def __init__(self, cfg: CfgNode, workload: Workload, facts: Mapping[str, Any]) -> None:
        cfg = prepared_config(cfg, workload)
        model = transformers_model(cfg, facts["weights"])
        model.train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval().requires_grad_(False)
        super().__init__(cfg, workload, model)
        self.stopwatch.watch(model.criterion, "forward", "loss")
        mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
        samples = training_samples(workload, self._num_classes)
        images = torch.stack([(sample["image"] - mean) / std for sample in samples])
        masks = [sample["instances"].gt_masks.float() for sample in samples]
        self._inputs = {
            "pixel_values": padded(images).to(self.device),
            "mask_labels": [padded(masks_NHW).to(self.device) for masks_NHW in masks],
            "class_labels": [sample["instances"].gt_classes.to(self.device) for sample in samples],
        }

    def flops(self) -> int:
        return count_costs(self.model, self._inputs["pixel_values"]).total_flops  # type: ignore[arg-type]

    def _losses(self) -> Tensor:
        loss: Tensor = self.model(**self._inputs).loss
        return loss
