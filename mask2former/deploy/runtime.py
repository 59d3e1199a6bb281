"""One way to use a trained model, whatever it was saved as: `load` it, call it with pictures, get typed results."""

# (H, W) pixels of a picture.

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from detectron2.config import CfgNode
from numpy.typing import NDArray
from torch import nn

from mask2former.config import load_config
from mask2former.deploy.predictor import Predictor
from mask2former.deploy.results import TASKS, ClassInfo, Segmentation, Task, class_infos, segmentation_of
from mask2former.maskformer_model import MaskFormer
from mask2former.modeling.postprocessing import ResultSettings, image_results

__all__ = ["OneTask", "Segmenter", "load", "load_eager", "settings_of_task", "tasks_of", "weights_hash"]

Picture = NDArray[np.uint8]


class Segmenter:
    """Segments pictures of any size; threads may call it at the same time.

    Attributes:
        classes: that the model knows, by contiguous index.
        tasks: that it can do; the first is done where none is asked for.
        description: what was loaded: `format`, `precision`, `versions`, `weights_sha256`, `thresholds` and more, as
            `json.dumps` accepts it.
    """

    def __init__(
        self,
        *,
        classes: Sequence[ClassInfo],
        predictors: Mapping[Task, Predictor],
        description: Mapping[str, Any],
        scorer: Predictor | None = None,
    ) -> None:
        """Args:
        classes: that the model knows.
        predictors: by task, what gives predictions that `segmentation_of` can read.
        description: see above.
        scorer: gives the semantic result as scores of all classes; None where the model gives labels only.
        """
        self.classes = tuple(classes)
        self.tasks: tuple[Task, ...] = tuple(task for task in TASKS if task in predictors)
        self.description = dict(description)
        self._predictors = dict(predictors)
        self._scorer = scorer

    def semantic_scores(self, image: Picture) -> NDArray[np.float32]:
        """(K, H, W) evidence for each class in a picture, to be averaged over several views of the same pixels.

        The best class is that of the semantic result. A format that gives labels only gives the confidence of the best
        class, and 0 for all others.
        """
        if self._scorer is not None:
            scores: NDArray[np.float32] = self._scorer(image)["sem_seg"].float().cpu().numpy()
            return scores
        result = self(image, "semantic")
        assert result.label_map is not None and result.confidence is not None, "a semantic result has both"
        votes = np.zeros((len(self.classes), *result.label_map.shape), dtype=np.float32)
        np.put_along_axis(votes, result.label_map[None].astype(np.int64), result.confidence[None], axis=0)
        return votes

    @overload
    def __call__(self, images: Picture, task: Task | None = None) -> Segmentation: ...

    @overload
    def __call__(self, images: Sequence[Picture], task: Task | None = None) -> list[Segmentation]: ...

    def __call__(
        self, images: Picture | Sequence[Picture], task: Task | None = None
    ) -> Segmentation | list[Segmentation]:
        """Segments one picture or several; a batch gives what single calls give, up to rounding.

        Args:
            images: (H, W, 3) uint8 RGB, one array or a sequence of arrays of any sizes.
            task: one of `tasks`; None: the first.

        Returns:
            The result at the picture's own size, a list of them if a sequence was given.

        Raises:
            ValueError: the model cannot do the task, or a picture has another type or shape.
        """
        task = self.tasks[0] if task is None else task
        if task not in self._predictors:
            raise ValueError(f"this model cannot do task {task!r}; choose from {', '.join(self.tasks)}")
        predictions = self._predictors[task](images)
        if isinstance(predictions, list):
            return [segmentation_of(prediction, task, self.classes) for prediction in predictions]
        return segmentation_of(predictions, task, self.classes)


def load(
    source: str | Path,
    *,
    config_file: str | Path | None = None,
    device: str | None = None,
    overrides: Sequence[str] = (),
) -> Segmenter:
    """A model that is ready to use.

    Args:
        source: a checkpoint, of any kind that MODEL.WEIGHTS takes; or a folder that tools/export_model.py wrote, which
            has a config of its own.
        config_file: of the checkpoint; None: `<name>.config.yaml` or `config.yaml` beside it.
        device: e.g. "cpu" or "cuda"; None: MODEL.DEVICE, or the CPU where that asks for a GPU that is not there.
        overrides: KEY VALUE ..., config keys.

    Raises:
        FileNotFoundError: there is no such checkpoint, or no config for it.
        ValueError: the weights are of another model, or a folder is incomplete or from another version.
        ModuleNotFoundError: what runs an exported model is not installed.
    """
    if config_file is None and Path(source).is_dir():
        # Only here: what writes and reads exported models needs this module.
        from mask2former.deploy.export.exported import load_exported

        if overrides:
            raise ValueError(f"{str(source)!r} is an exported model, in which config keys no longer change anything")
        return load_exported(Path(source), device)
    cfg = load_config(_find_config(source) if config_file is None else config_file, overrides)
    return load_eager(_with_weights(cfg, source, device), name=Path(source).name)


def load_eager(cfg: CfgNode, *, name: str = "") -> Segmenter:
    """The PyTorch model of a config with the weights it names.

    Args:
        name: of the weights, for the description.
    """
    predictor = Predictor.from_config(cfg)
    model = predictor.model
    if not isinstance(model, MaskFormer):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE={cfg.MODEL.META_ARCHITECTURE!r} is no MaskFormer: it has no segments"
        )
    settings = model.result_settings
    tasks = tasks_of(model)
    scored = replace(settings_of_task(settings, "semantic"), semantic_output="scores")
    return Segmenter(
        classes=class_infos(predictor.metadata, model.criterion.num_classes),
        predictors={task: predictor.with_model(OneTask(model, settings_of_task(settings, task))) for task in tasks},
        scorer=predictor.with_model(OneTask(model, scored)) if "semantic" in tasks else None,
        description={
            "format": "eager",
            "precision": cfg.MODEL.MASK_FORMER.TEST.PRECISION,
            "device": str(model.device),
            "weights": name,
            "weights_sha256": weights_hash(model),
            "thresholds": {
                "object_mask_threshold": settings.object_mask_threshold,
                "overlap_threshold": settings.overlap_threshold,
                "topk": settings.topk,
            },
            "versions": {"mask2former": version("mask2former"), "torch": torch.__version__},
        },
    )


def tasks_of(model: MaskFormer) -> tuple[Task, ...]:
    """Those that are switched on."""
    is_on = {"panoptic": model.panoptic_on, "instance": model.instance_on, "semantic": model.semantic_on}
    return tuple(task for task in TASKS if is_on[task])


def settings_of_task(settings: ResultSettings, task: Task) -> ResultSettings:
    """Those of a model, for one of its tasks alone; the result is the same as with the others."""
    return replace(
        settings,
        panoptic_on=task == "panoptic",
        instance_output="run_lengths" if task == "instance" else None,
        semantic_output="labels" if task == "semantic" else None,
    )


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of all parameters and buffers, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class OneTask(nn.Module):
    """Answers Detectron2's input format with the result of one task."""

    def __init__(self, model: MaskFormer, settings: ResultSettings) -> None:
        super().__init__()
        self.model = model
        self.settings = settings

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            image_results(prediction.class_logits, prediction.mask_logits, prediction.sizes, self.settings)
            for prediction in self.model.predict(batched_inputs)
        ]


def _find_config(source: str | Path) -> Path:
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(
            f"checkpoint {str(source)!r} does not exist; for one at an address pass config_file too"
        )
    candidates = [path.with_name(f"{path.stem}.config.yaml"), path.with_name("config.yaml")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    names = " or ".join(candidate.name for candidate in candidates)
    raise FileNotFoundError(f"no config for checkpoint {str(source)!r}: pass config_file, or put {names} beside it")


def _with_weights(cfg: CfgNode, source: str | Path, device: str | None) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(source)
    if device is not None:
        cfg.MODEL.DEVICE = device
    cfg.freeze()
    return cfg
