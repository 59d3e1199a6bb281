"""The network through PyTorch's compiler."""

from __future__ import annotations

from torch import nn

__all__ = ["compile_network"]


def compile_network(backbone: nn.Module, head: nn.Module, *, backend: str = "inductor") -> None:
    """Compile the parts of the network in place, each at its first call, for pictures of any size.

    Post-processing, matching and losses stay as they are: what they do depends on values.

    Args:
        backbone: see `MaskFormer`.
        head: with a `pixel_decoder`, whose children are compiled, and a `predictor`.
        backend: of torch.compile.
    """
    for part in (backbone, *head.pixel_decoder.children(), head.predictor):  # type: ignore[union-attr,operator]
        part.compile(dynamic=True, backend=backend)
