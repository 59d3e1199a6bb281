"""From a config with weights to a folder with the exported model, proven against the original."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from numpy.typing import NDArray
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

from mask2former.deploy.export.exported import FORMAT_VERSION, MANIFEST, ExportedModel, file_hash, read_manifest
from mask2former.deploy.export.formats import DTYPES, FORMATS, check_format, has_tensorrt, tensorrt_command
from mask2former.deploy.export.graph import INPUTS, ExportGraph, output_names
from mask2former.deploy.export.parity import (
    BOUNDS,
    Agreement,
    ParityError,
    Speed,
    compare,
    compare_speed,
    parity_sizes,
)
from mask2former.deploy.export.quantization import quantize
from mask2former.deploy.export.readme import report_table, write_readme
from mask2former.deploy.export.tasks import OUTPUTS, rule_of_task
from mask2former.deploy.predictor import Predictor
from mask2former.deploy.results import ClassInfo, Task, class_infos
from mask2former.deploy.runtime import OneTask, settings_of_task, tasks_of, weights_hash
from mask2former.maskformer_model import MaskFormer
from mask2former.modeling.pixel_decoder.ops import backends

__all__ = ["ExportOptions", "Exported", "export_model"]

LICENSE_NOTE = (
    "The code that made this folder is under the MIT license. Weights are under the license of whoever trained them, "
    "and so are the data sets behind them: see to it before you pass this folder on."
)


@dataclass(frozen=True)
class ExportOptions:
    """What is wanted.

    Attributes:
        format: a name in `FORMATS`.
        precision: of the network, see `Format.precisions`; results are computed in float32.
        task: a key of `OUTPUTS`.
        fixed_size: (height, width) of all pictures for the network; None: any.
        fixed_batch: number of pictures of a call; None: any.
        calibration: pictures (H, W, 3) uint8 RGB of which int8 learns ranges; see `quantize`.
    """

    format: str
    precision: str = "fp32"
    task: str = "panoptic"
    fixed_size: tuple[int, int] | None = None
    fixed_batch: int | None = None
    calibration: Sequence[NDArray[np.uint8]] = ()


@dataclass(frozen=True)
class Exported:
    """What came of it."""

    folder: Path
    agreements: list[Agreement]
    speed: Speed
    notes: list[str]

    def __str__(self) -> str:
        return report_table(self.agreements, self.speed)


def export_model(cfg: CfgNode, options: ExportOptions, output: str | Path) -> Exported:
    """Writes a folder, whole or not at all.

    Args:
        cfg: names the weights.
        output: the folder, which must not exist.

    Raises:
        FileExistsError: it exists.
        FileNotFoundError: the format needs a compiler, and there is none.
        ModuleNotFoundError: the format needs something that is not installed.
        ValueError: format, precision or task are unknown or do not go together, or the model has no such task.
        ParityError: the exported model does not give what the model gives.
    """
    output = Path(output)
    if output.exists():
        raise FileExistsError(f"{str(output)!r} exists and is not overwritten: choose another --output, or remove it")
    choice = check_format(options.format, options.precision)
    if options.task not in OUTPUTS:
        raise ValueError(f"task {options.task!r} is unknown; choose from {', '.join(OUTPUTS)}")
    predictor = Predictor.from_config(_on_cpu(cfg))
    model = predictor.model
    if not isinstance(model, MaskFormer) or model.is_video:
        raise ValueError(f"MODEL.META_ARCHITECTURE={cfg.MODEL.META_ARCHITECTURE!r} cannot be exported, only MaskFormer")
    tasks = tasks_of(model)
    if options.task != "raw" and options.task not in tasks:
        raise ValueError(
            f"this model has no task {options.task!r}, only {', '.join(tasks)}: "
            "MODEL.MASK_FORMER.TEST.PANOPTIC_ON, INSTANCE_ON and SEMANTIC_ON say so"
        )
    classes = class_infos(predictor.metadata, model.criterion.num_classes)
    unfinished = output.with_name(f".{output.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        with _standard_operators(choice.sampling):
            program = _program(model, options, is_bgr=cfg.INPUT.FORMAT == "BGR")
            choice.write(program, unfinished / choice.file_name, options.task)
        if options.precision == "int8":
            quantize(unfinished / choice.file_name, [_prepared(predictor, picture) for picture in options.calibration])
        manifest = _manifest(cfg, model, options, tasks)
        exported = _finish(unfinished, manifest, classes, model, options, is_bgr=cfg.INPUT.FORMAT == "BGR")
        notes = _tensorrt(unfinished, output, options) if options.format == "tensorrt" else []
        os.rename(unfinished, output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return Exported(output, *exported, notes)


def _program(model: MaskFormer, options: ExportOptions, *, is_bgr: bool) -> ExportedProgram:
    """The graph, with sizes as free as they are wanted."""
    rule = rule_of_task(options.task, model.result_settings, model.criterion.num_classes)
    graph = ExportGraph(model, rule, is_bgr=is_bgr, dtype=DTYPES[options.precision]).eval()
    # An example stands for all sizes unless it is 1 or a multiple of what pictures are padded to.
    height, width = options.fixed_size or (150, 214)
    images = torch.zeros((options.fixed_batch or 2, 3, height, width), dtype=torch.uint8)
    sizes: dict[int, Any] = {} if options.fixed_batch else {0: Dim.AUTO}
    if options.fixed_size is None:
        sizes |= {2: Dim.AUTO, 3: Dim.AUTO}
    inputs: tuple[Tensor, ...] = (images,)
    shapes: dict[str, Any] = {INPUTS[0]: sizes}
    if options.task != "raw":
        inputs += (torch.tensor([200, 177]),)
        shapes[INPUTS[1]] = None
    with torch.no_grad():
        program = torch.export.export(graph, inputs, dynamic_shapes=shapes)
    example = next(node for node in program.graph.nodes if node.name == INPUTS[0]).meta["val"]
    # What a layer has taken for a number is still a symbol, but one of a single value.
    free = {axis: example.shape[axis] for axis in sizes}
    fixed = [axis for axis, size in free.items() if isinstance(size, int) or size.node.maybe_as_int() is not None]
    if fixed:
        raise ValueError(
            f"in this model sizes along axes {fixed} of (batch, channels, height, width) cannot be free, which its "
            "layers say to torch.export: pass --fixed-size and --fixed-batch"
        )
    return program


@contextmanager
def _standard_operators(sampling: str) -> Iterator[None]:
    """Deformable attention in plain PyTorch, one of `backends.PLAIN`, whatever runs it faster here.

    And attention whose result has the memory layout that its own definition gives: how maps are flattened is decided
    while tracing, and must hold when an exporter takes the operator apart.
    """
    before = os.environ.get(backends.VARIABLE)
    os.environ[backends.VARIABLE] = sampling
    backends.forget_choices()
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        del os.environ[backends.VARIABLE]
        if before is not None:
            os.environ[backends.VARIABLE] = before
        backends.forget_choices()


def _manifest(cfg: CfgNode, model: MaskFormer, options: ExportOptions, tasks: Sequence[Task]) -> dict[str, Any]:
    settings = model.result_settings
    names = ["torch", "mask2former", *FORMATS[options.format].modules]
    return {
        "format_version": FORMAT_VERSION,
        "format": options.format,
        "precision": options.precision,
        "task": options.task,
        "tasks": list(tasks) if options.task == "raw" else [options.task],
        "model_file": FORMATS[options.format].file_name,
        "weights": Path(cfg.MODEL.WEIGHTS).name,
        "weights_sha256": weights_hash(model),
        "versions": {name: _version(name) for name in names},
        "inputs": {
            INPUTS[0]: "uint8 (batch, 3, height, width), RGB, resized, not normalized, not padded",
            **({} if options.task == "raw" else {INPUTS[1]: "int64 (2,), height and width of the results"}),
        },
        "outputs": list(output_names(options.task)),
        "fixed": {"size": options.fixed_size and list(options.fixed_size), "batch": options.fixed_batch},
        "preparation": {
            "min_size": cfg.INPUT.MIN_SIZE_TEST,
            "max_size": cfg.INPUT.MAX_SIZE_TEST,
            "size_divisibility": max(1, model.size_divisibility),
            "memory_budget": settings.memory_budget,
        },
        "thresholds": {
            "object_mask_threshold": settings.object_mask_threshold,
            "overlap_threshold": settings.overlap_threshold,
            "topk": settings.topk,
        },
        "settings": {
            "resize_first": settings.resize_first,
            "thing_ids": settings.thing_ids,
            "object_mask_threshold": settings.object_mask_threshold,
            "overlap_threshold": settings.overlap_threshold,
            "topk": settings.topk,
        },
        "license": LICENSE_NOTE,
    }


def _finish(
    folder: Path,
    manifest: dict[str, Any],
    classes: Sequence[ClassInfo],
    model: MaskFormer,
    options: ExportOptions,
    *,
    is_bgr: bool,
) -> tuple[list[Agreement], Speed]:
    """What lies beside the model, with the comparison of what was written."""
    (folder / "classes.json").write_text(json.dumps([asdict(info) for info in classes], indent=1))
    manifest["files"] = {path.name: file_hash(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    manifest = read_manifest(folder)

    task: Task = manifest["tasks"][0]
    settings = settings_of_task(model.result_settings, task)
    run = FORMATS[options.format].open(folder / manifest["model_file"], "cpu")
    exported, eager = ExportedModel(run, manifest, settings, "cpu"), OneTask(model, settings)
    sizes = parity_sizes(manifest["preparation"]["min_size"] or 256)
    if options.fixed_size is not None:
        sizes = [(options.fixed_size, options.fixed_size), (options.fixed_size, (240, 320))]
    agreements = compare(eager, exported, sizes, task, classes, is_bgr=is_bgr)
    bounds = BOUNDS[options.precision]
    if not all(agreement.is_within(bounds) for agreement in agreements):
        raise ParityError(
            f"the exported model does not give what the model gives. Allowed are {bounds}, found\n"
            f"{report_table(agreements, None)}"
        )
    speed = compare_speed(eager, exported, sizes[min(1, len(sizes) - 1)][0])
    report = {
        "bounds": asdict(bounds),
        "parity": [asdict(agreement) for agreement in agreements],
        "speed": speed.as_dict(),
    }
    (folder / "report.json").write_text(json.dumps(report, indent=1))
    write_readme(folder / "README.md", manifest, agreements, speed)
    return agreements, speed


def _tensorrt(folder: Path, output: Path, options: ExportOptions) -> list[str]:
    """Builds the engine where TensorRT is installed; otherwise says how."""
    if not has_tensorrt():
        command = " ".join(tensorrt_command(output, options.precision))
        return [
            "TensorRT is not installed here (no trtexec): the folder has the ONNX model. Build the engine with",
            command,
        ]
    subprocess.run(tensorrt_command(folder, options.precision), check=True)
    return []


def _prepared(predictor: Predictor, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture of the size that the network gets."""
    resized: NDArray[np.uint8] = predictor.resized(picture)
    return resized


def _on_cpu(cfg: CfgNode) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.COMPILE = False
    cfg.freeze()
    return cfg


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
