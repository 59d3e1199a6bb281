"""Weights and activations of an ONNX file as 8-bit integers (arXiv:1712.05877)."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mask2former.deploy.export.graph import INPUTS

__all__ = ["quantize"]

LINEAR_LAYERS = ("MatMul", "Gemm")


def quantize(path: Path, pictures: Sequence[NDArray[np.uint8]] = ()) -> None:
    """Replaces an ONNX file.

    Linear layers find the ranges of their inputs in every call (dynamic): what queries hold differs between pictures.

    Args:
        path: of a float32 model.
        pictures: (h, w, 3) uint8 RGB, as the network gets them. From these the ranges of what convolutions read and
            write are learned once (static). Without any convolutions stay as they are.
    """
    onnx: Any = importlib.import_module("onnx")
    quantization: Any = importlib.import_module("onnxruntime.quantization")
    model = onnx.load(str(path))
    target = path.with_name(f"int8_{path.name}")
    # Seven bits: with eight, processors without VNNI overflow in sums of two products, and errors triple.
    weights = {"per_channel": True, "reduce_range": True, "weight_type": quantization.QuantType.QInt8}
    linear_layers = _layers_with_weights(model, LINEAR_LAYERS)
    quantization.quantize_dynamic(model, str(target), nodes_to_quantize=linear_layers, **weights)
    if pictures:
        model = onnx.load(str(target))
        quantization.quantize_static(
            model,
            str(target),
            _reader(quantization, pictures, [argument.name for argument in model.graph.input]),
            nodes_to_quantize=_layers_with_weights(model, ("Conv",)),
            activation_type=quantization.QuantType.QUInt8,
            **weights,
        )
    for old in (path, path.with_name(f"{path.name}.data")):
        old.unlink(missing_ok=True)
    target.rename(path)


def _layers_with_weights(model: Any, kinds: Sequence[str]) -> list[str]:
    """Not products of two activations: attention, masks and resizing stay exact."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [node.name for node in model.graph.node if node.op_type in kinds and weights & set(node.input)]


def _reader(quantization: Any, pictures: Sequence[NDArray[np.uint8]], inputs: Sequence[str]) -> Any:
    def samples() -> Iterator[dict[str, NDArray[Any]]]:
        for picture in pictures:
            values = (picture.transpose(2, 0, 1)[None], np.array(picture.shape[:2], dtype=np.int64))
            yield {name: value for name, value in zip(INPUTS, values, strict=True) if name in inputs}

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.samples = samples()

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(self.samples, None)

    return Reader()
