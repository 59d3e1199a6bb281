"""Reading pickles that hold tensors without running what they contain, see `mask2former.pickles`."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from mask2former.pickles import PLAIN, PlainUnpickler, RefusalError

__all__ = ["refused_content", "unpickle", "unpickle_torch"]


def unpickle(file: IO[bytes]) -> Any:
    """What a pickle file holds (`pickle.dump` wrote it, or a program in Python 2).

    Raises:
        pickle.UnpicklingError: it asks for something that is not allowed; the message names it.
        Exception: foreign bytes may end in almost any error.
    """
    # latin1 is what arrays pickled by Python 2 need, as some published ones were.
    return _TensorUnpickler(file, encoding="latin1").load()


def unpickle_torch(file: str | Path | IO[bytes]) -> Any:
    """What a file of `torch.save` holds, on the CPU; raises as `unpickle` does."""
    # NumPy's part, which torch refuses on its own: numbers beside the weights are often NumPy's.
    arrays: list[Any] = [
        (given, f"{module}.{name}") for (module, name), given in PLAIN.items() if module.startswith("numpy")
    ]
    with torch.serialization.safe_globals(arrays):
        return torch.load(file, map_location="cpu", weights_only=True)


def refused_content(error: Exception) -> str | None:
    """What a reader has refused, without torch's advice to run the file's code nevertheless; None: it has not."""
    refused = re.search(r"nsupported (?:\w+: )?GLOBAL ([\w.]+)", str(error))
    if refused:
        return str(RefusalError(refused[1]))
    if "weights_only" in str(error):
        return "it is of a kind that cannot be read without running it"
    return str(error) if isinstance(error, RefusalError) else None


def _storage(content: bytes) -> Any:
    """`torch.storage._load_from_bytes`, which in torch would unpickle the inner bytes without restrictions."""
    return unpickle_torch(io.BytesIO(content))


def _parameter(data: Tensor, requires_grad: bool, hooks: object) -> Tensor:
    """`torch._utils._rebuild_parameter` without hooks, which would be called in a backward pass."""
    return nn.Parameter(data, requires_grad=False)


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: object) -> Tensor:
    """`torch._utils._rebuild_tensor_v2` without hooks; torch checks that the storage is long enough."""
    return torch.empty(0, dtype=storage.dtype).set_(storage, offset, size, stride)


class _TensorUnpickler(PlainUnpickler):
    allowed = {
        **PLAIN,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        ("torch.storage", "_load_from_bytes"): _storage,
    }
