"""A folder that holds an exported model: its manifest, and how the model is used in the place of the original."""

# B pictures, N instances, S segments, (h, w) pixels for the network, (H, W) pixels of the result.

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.data import Metadata
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from mask2former.deploy.export.formats import Run, check_format
from mask2former.deploy.export.graph import output_names
from mask2former.deploy.predictor import Predictor
from mask2former.deploy.results import TASKS, ClassInfo, Task
from mask2former.deploy.runtime import Segmenter, settings_of_task
from mask2former.modeling.postprocessing import MaskSizes, ResultSettings, image_results

__all__ = ["FORMAT_VERSION", "MANIFEST", "ExportedModel", "file_hash", "load_exported", "read_manifest"]

MANIFEST = "manifest.json"
FORMAT_VERSION = 1


def load_exported(folder: Path, device: str | None = None) -> Segmenter:
    """The model of a folder that tools/export_model.py wrote.

    Raises:
        ValueError: the folder is incomplete, damaged or of another version.
        ModuleNotFoundError: what runs its format is not installed.
    """
    manifest = read_manifest(folder)
    choice = check_format(manifest["format"])
    device = "cpu" if device is None else device
    run = choice.open(folder / manifest["model_file"], device)
    classes = tuple(
        ClassInfo(entry["name"], tuple(entry["color"]), entry["dataset_id"], is_thing=entry["is_thing"])
        for entry in json.loads((folder / "classes.json").read_text())
    )
    preparation = manifest["preparation"]
    settings = ResultSettings(
        semantic_output="labels",
        instance_output="run_lengths",
        panoptic_on=True,
        memory_budget=preparation["memory_budget"],
        **manifest["settings"],
    )
    predictors: dict[Task, Predictor] = {
        task: Predictor(
            model=ExportedModel(run, manifest, settings_of_task(settings, task), device),
            metadata=Metadata(),
            min_size=preparation["min_size"],
            max_size=preparation["max_size"],
        )
        for task in TASKS
        if task in manifest["tasks"]
    }
    hidden = ("files", "settings")
    description = {name: value for name, value in manifest.items() if name not in hidden} | {"device": device}
    return Segmenter(classes=classes, predictors=predictors, description=description)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder whose files are all there and unchanged."""
    path = folder / MANIFEST
    cure = "export it again with tools/export_model.py"
    if not path.is_file():
        raise ValueError(f"{str(folder)!r} is no exported model: it has no {MANIFEST}; {cure}")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        version = manifest["format_version"]
        files: dict[str, str] = manifest["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is damaged ({error}); {cure}") from error
    if version != FORMAT_VERSION:
        raise ValueError(f"{str(folder)!r} has format version {version}, this package reads {FORMAT_VERSION}; {cure}")
    for name, digest in files.items():
        if not (folder / name).is_file():
            raise ValueError(f"{str(folder)!r} is incomplete: {name} is missing; {cure}")
        if file_hash(folder / name) != digest:
            raise ValueError(f"{str(folder)!r} is damaged: {name} is not the file that was written; {cure}")
    return manifest


def file_hash(path: Path) -> str:
    """SHA-256."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
        return digest.hexdigest()


class ExportedModel(nn.Module):
    """Answers Detectron2's input format, as `MaskFormer` does, by what an exporter wrote."""

    def __init__(self, run: Run, manifest: Mapping[str, Any], settings: ResultSettings, device: str) -> None:
        """Args:
        run: the graph.
        manifest: of its folder.
        settings: of the task that is wanted; a graph without a rule gives masks, to which the task's is applied here.
        device: where the graph runs.
        """
        super().__init__()
        self.run = run
        self.task: str = manifest["task"]
        self.names = output_names(self.task)
        self.settings = settings
        self.step: int = manifest["preparation"]["size_divisibility"]
        self.fixed: dict[str, list[int] | int | None] = manifest["fixed"]
        self.device_name = device

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Pictures of one size; results of different sizes go through the graph one after the other."""
        groups: dict[tuple[int, int], list[int]] = {}
        for index, sample in enumerate(batched_inputs):
            groups.setdefault((sample["height"], sample["width"]), []).append(index)
        predictions: list[dict[str, Any]] = [{} for _ in batched_inputs]
        for size, members in groups.items():
            images = torch.stack([batched_inputs[index]["image"] for index in members]).to(self.device_name)
            for index, prediction in zip(members, self._predict(images, size), strict=True):
                predictions[index] = prediction
        return predictions

    def outputs(self, images: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """What the graph gives, by name.

        Args:
            images: (B, 3, h, w) uint8 RGB.
            size: (H, W).
        """
        fixed_size, fixed_batch = self.fixed["size"], self.fixed["batch"]
        if fixed_size is not None and list(images.shape[2:]) != fixed_size:
            raise ValueError(
                f"this model was exported for pictures of (height, width) {fixed_size} alone, got "
                f"{list(images.shape[2:])}; export it without --fixed-size"
            )
        inputs = [images] if self.task == "raw" else [images, torch.tensor(size, device=images.device)]
        if not isinstance(fixed_batch, int):
            return dict(zip(self.names, self.run(inputs), strict=True))
        parts = []
        for part in images.split(fixed_batch):
            filled = torch.cat([part, part[-1:].expand(fixed_batch - len(part), -1, -1, -1)])
            parts.append([result[: len(part)] for result in self.run([filled, *inputs[1:]])])
        return {name: _joined(results) for name, *results in zip(self.names, *parts, strict=True)}

    def _predict(self, images: Tensor, size: tuple[int, int]) -> list[dict[str, Any]]:
        outputs = self.outputs(images, size)
        image_size = (images.shape[2], images.shape[3])
        read = {"panoptic": self._panoptic, "instance": self._instances, "semantic": self._semantic}.get(self.task)
        pictures = [{name: values[index] for name, values in outputs.items()} for index in range(len(images))]
        if read is not None:
            return [read(picture, size) for picture in pictures]
        padded = (-(-image_size[0] // self.step) * self.step, -(-image_size[1] // self.step) * self.step)
        sizes = MaskSizes(padded, image_size, size)
        return [
            image_results(picture["class_logits"], picture["mask_logits"].__getitem__, sizes, self.settings)
            for picture in pictures
        ]

    def _panoptic(self, picture: dict[str, Tensor], size: tuple[int, int]) -> dict[str, Any]:
        ids, categories, scores = (
            picture[name].tolist() for name in ("segment_ids", "segment_classes", "segment_scores")
        )
        things = set(self.settings.thing_ids or ())
        infos = [
            {"id": number, "category_id": category, "isthing": category in things, "score": score}
            for number, category, score in zip(ids, categories, scores, strict=True)
            if number
        ]
        return {"panoptic_seg": (picture["panoptic_map"], infos)}

    def _instances(self, picture: dict[str, Tensor], size: tuple[int, int]) -> dict[str, Any]:
        is_result_N = picture["scores"] >= 0
        instances = Instances(size)
        instances.pred_masks = picture["masks"][is_result_N]
        instances.pred_boxes = Boxes(picture["boxes"][is_result_N])
        instances.scores = picture["scores"][is_result_N]
        instances.pred_classes = picture["classes"][is_result_N].long()
        return {"instances": instances}

    def _semantic(self, picture: dict[str, Tensor], size: tuple[int, int]) -> dict[str, Any]:
        return {"sem_seg": picture["labels"], "sem_seg_confidence": picture["confidence"]}


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Batches one after the other; tables of different lengths are filled up with zeros."""
    length = max(part.shape[1] for part in parts)
    return torch.cat(
        [
            part
            if part.shape[1] == length
            else torch.cat([part, part.new_zeros(part.shape[0], length - part.shape[1], *part.shape[2:])], dim=1)
            for part in parts
        ]
    )
