"""The formats a model is exported to: what each can do, how it is written, and how it runs."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from mask2former.deploy.export.aot_inductor import check_compiler, compile_program, open_package
from mask2former.deploy.export.graph import INPUTS, output_names
from mask2former.deploy.export.onnx_attention import attention_in
from mask2former.deploy.export.torchscript import to_torchscript
from mask2former.modeling.pixel_decoder.ops.backends import EMBEDDING_BAG, REFERENCE

__all__ = ["DTYPES", "FORMATS", "Format", "Run", "check_format", "has_tensorrt", "tensorrt_command"]

#: (inputs in the order of `INPUTS`) -> outputs in the order of `output_names`, on the CPU or where the model runs.
Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]

OPSET = 20  # of ONNX; the first with GridSample of any rank and its present names of modes
EXTERNAL_DATA_ABOVE = 2**30  # bytes; a protocol buffer holds 2 GiB at most

#: In which the network computes. Integers are made from a float32 graph.
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        file_name: of the model in its folder.
        precisions: that it can have.
        modules: Python modules that it needs beyond PyTorch, all in extra "deploy".
        sampling: how its deformable attention is written, one of `backends.PLAIN`.
        write: makes the file from a program, for a task.
        open: makes what runs the file, on a device.
        check: raises where files cannot be written here for want of something else.
    """

    file_name: str
    precisions: tuple[str, ...]
    modules: tuple[str, ...]
    sampling: str
    write: Callable[[ExportedProgram, Path, str], None]
    open: Callable[[Path, str], Run]
    check: Callable[[], None] = lambda: None


def check_format(name: str, precision: str | None = None) -> Format:
    """The format of that name, if it can be used here and has the precision.

    Raises:
        ValueError: it is unknown, or has another choice of precisions.
        ModuleNotFoundError: what it needs is not installed.
        FileNotFoundError: it is to be written, which its precision says, and there is no compiler.
    """
    if name not in FORMATS:
        raise ValueError(f"format {name!r} is unknown; choose from {', '.join(FORMATS)}")
    found = FORMATS[name]
    if precision is not None and precision not in found.precisions:
        able = "; ".join(f"{other}: {', '.join(choice.precisions)}" for other, choice in FORMATS.items())
        raise ValueError(f"format {name!r} has no precision {precision!r}. There are {able}")
    missing = [module for module in found.modules if importlib.util.find_spec(module) is None]
    if missing:
        raise ModuleNotFoundError(f"format {name!r} needs {', '.join(missing)}: pip install 'mask2former[deploy]'")
    if precision is not None:
        found.check()
    return found


def _write_torchscript(program: ExportedProgram, path: Path, task: str) -> None:
    to_torchscript(program).save(str(path))


def _open_torchscript(path: Path, device: str) -> Run:
    with warnings.catch_warnings():  # see `to_torchscript`
        warnings.simplefilter("ignore", FutureWarning)
        module = torch.jit.load(str(path), map_location=device).eval()

    def run(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        results: Sequence[Tensor] = module(*inputs)
        return results

    return run


def _write_torch_export(program: ExportedProgram, path: Path, task: str) -> None:
    torch.export.save(program, path)


def _open_torch_export(path: Path, device: str) -> Run:
    program = torch.export.load(path)
    if device != "cpu":
        passes = importlib.import_module("torch.export.passes")
        program = passes.move_to_device_pass(program, device)
    # Its guards are of the example's memory layout, too: they refuse sizes of Swin that give the right results.
    module = program.module(check_guards=False)
    return lambda inputs: module(*inputs)


def _write_aot_inductor(program: ExportedProgram, path: Path, task: str) -> None:
    compile_program(program, path)


def _write_onnx(program: ExportedProgram, path: Path, task: str) -> None:
    onnx: Any = importlib.import_module("onnx")
    onnxslim: Any = importlib.import_module("onnxslim")
    num_inputs = len(program.graph_signature.user_inputs)
    # The exporter reports its steps on standard output, and every operator that it does not fold in the log.
    rewriter = logging.getLogger("onnxscript")
    level = rewriter.level
    rewriter.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(INPUTS[:num_inputs]),
                output_names=list(output_names(task)),
                custom_translation_table={torch.ops.aten.scaled_dot_product_attention.default: attention_in(OPSET)},
            )
    finally:
        rewriter.setLevel(level)
    assert exported is not None, "without a file name the exporter returns the model"
    model = onnxslim.slim(exported.model_proto)
    foreign = sorted(
        {f"{node.domain}::{node.op_type}" for node in model.graph.node if node.domain not in ("", "ai.onnx")}
    )
    if foreign:
        raise ValueError(f"the ONNX graph has operators outside the standard: {', '.join(foreign)}")
    options: dict[str, Any] = {}
    if model.ByteSize() > EXTERNAL_DATA_ABOVE:
        options = {"save_as_external_data": True, "location": f"{path.name}.data", "convert_attribute": False}
    onnx.save(model, str(path), **options)
    onnx.checker.check_model(str(path))


def _open_onnx(path: Path, device: str) -> Run:
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    wanted = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}[torch.device(device).type]
    if wanted not in runtime.get_available_providers():
        raise ValueError(
            f"device {device!r}: this ONNX Runtime lacks {wanted}; install onnxruntime-gpu, or take the CPU"
        )
    providers = [wanted] if wanted == "CPUExecutionProvider" else [wanted, "CPUExecutionProvider"]
    session = runtime.InferenceSession(str(path), options, providers=providers)
    names = [argument.name for argument in session.get_inputs()]

    def run(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        arrays = {name: tensor.cpu().numpy() for name, tensor in zip(names, inputs, strict=True)}
        return [torch.from_numpy(result) for result in session.run(None, arrays)]

    return run


def tensorrt_command(folder: Path, precision: str) -> list[str]:
    """What builds the engine from the ONNX file of a folder, for one picture at a time of 256 to 2048 pixels."""
    shapes = {"min": "1x3x256x256", "opt": "1x3x800x1333", "max": "1x3x2048x2048"}
    command = ["trtexec", f"--onnx={folder / 'model.onnx'}", f"--saveEngine={folder / 'model.engine'}"]
    command += [f"--{bound}Shapes=images:{shape}" for bound, shape in shapes.items()]
    return command + ([] if precision == "fp32" else [f"--{precision}"])


def has_tensorrt() -> bool:
    """Whether its builder is here."""
    return shutil.which("trtexec") is not None


_PRECISIONS_OF_TORCH = ("fp32", "fp16", "bf16")
_ONNX = Format(
    file_name="model.onnx",
    precisions=("fp32", "fp16", "int8"),
    modules=("onnx", "onnxscript", "onnxslim", "onnxruntime"),
    sampling=REFERENCE,  # GridSample
    write=_write_onnx,
    open=_open_onnx,
)
FORMATS: dict[str, Format] = {
    "torchscript": Format("model.ts", _PRECISIONS_OF_TORCH, (), EMBEDDING_BAG, _write_torchscript, _open_torchscript),
    "torch_export": Format(
        "model.pt2", _PRECISIONS_OF_TORCH, (), EMBEDDING_BAG, _write_torch_export, _open_torch_export
    ),
    "aot_inductor": Format(
        "compiled.pt2",
        _PRECISIONS_OF_TORCH,
        (),
        EMBEDDING_BAG,
        _write_aot_inductor,
        open_package,
        check_compiler,
    ),
    "onnx": _ONNX,
    # TensorRT reads ONNX: the folder holds that, and where TensorRT is installed its engine too.
    "tensorrt": replace(_ONNX, precisions=("fp32", "fp16", "bf16")),
}
