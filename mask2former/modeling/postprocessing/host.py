"""What depends on values and must be known on the host: how many were chosen, and what becomes a Python list.

On the CPU such a number costs nothing, so work is done for those alone that were chosen. Any other device would have to
be waited for: there all that may be chosen are worked on, and what the host must know reaches it with the results.
"""
# N chosen with repetitions, M different ones, Q queries, X things of any kind.

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["chosen_first", "different", "is_among", "knows_values", "to_host"]


def knows_values(device: torch.device) -> bool:
    """Whether the host knows at once what is in a tensor."""
    return device.type == "cpu"


def chosen_first(is_chosen_X: Tensor) -> Tensor:
    """Indices of the chosen ones in ascending order, followed by those of all others unless numbers are known."""
    if knows_values(is_chosen_X.device):
        return is_chosen_X.nonzero().squeeze(1)
    return is_chosen_X.byte().argsort(descending=True, stable=True)


def different(queries_N: Tensor, num_queries: int) -> tuple[Tensor, Tensor]:
    """Queries among which are those given, and where these are: (M,) and (N,).

    No more than N; each once and no others, if numbers are known.
    """
    if knows_values(queries_N.device):
        return queries_N.unique(return_inverse=True)
    if num_queries <= len(queries_N):
        return torch.arange(num_queries, device=queries_N.device), queries_N
    return queries_N, torch.arange(len(queries_N), device=queries_N.device)


def is_among(classes_X: Tensor, class_ids: Iterable[int]) -> Tensor:
    """Which of the classes have one of these ids, (X,) bool."""
    ids = torch.tensor(sorted(class_ids), dtype=torch.int64).to(classes_X.device, non_blocking=True)
    return (classes_X.unsqueeze(1) == ids).any(dim=1)


def to_host(*tensors: Tensor) -> list[NDArray[Any]]:
    """All of them, in one copy."""
    if all(knows_values(tensor.device) for tensor in tensors):
        return [tensor.numpy() for tensor in tensors]
    # Byte by byte, whatever they are.
    joined = torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in tensors]).cpu().numpy()
    arrays, start = [], 0
    for tensor in tensors:
        end = start + tensor.numel() * tensor.element_size()
        dtype = torch.empty(0, dtype=tensor.dtype).numpy().dtype
        arrays.append(joined[start:end].copy().view(dtype).reshape(tensor.shape))
        start = end
    return arrays
