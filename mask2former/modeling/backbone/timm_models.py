"""timm's models by name: looked up, built so that they read pictures of any size, and loaded."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn

__all__ = ["ModelOutline", "check_colors", "create_model", "describe_model", "import_timm"]

#: Earlier versions leave parameters without gradients in ConvNeXt and do not recompute the blocks of ResNets.
_OLDEST = (1, 0, 31)
#: Constructor arguments that make a model of timm read other sizes than the one it was trained on.
_ANY_SIZE = {"dynamic_img_size": True, "strict_img_size": False}


class ModelOutline(NamedTuple):
    """What a model offers: its intermediate maps, first to last, and the arguments of its constructor."""

    channels: list[int]
    strides: list[int]  # in pixels
    accepted: frozenset[str]


def import_timm() -> ModuleType:
    """timm, which is needed by this backbone alone and therefore optional.

    Raises:
        ImportError: it is not installed, or too old.
    """
    try:
        import timm
    except ImportError as error:
        raise ImportError("MODEL.BACKBONE.NAME='TimmBackbone' needs timm: pip install 'mask2former[timm]'") from error
    version = tuple(int(number) for number in re.findall(r"\d+", timm.__version__)[:3])
    if version < _OLDEST:
        raise ImportError(
            f"MODEL.BACKBONE.NAME='TimmBackbone' needs timm {'.'.join(map(str, _OLDEST))} or later, this is "
            f"{timm.__version__}: pip install --upgrade timm"
        )
    return timm


def describe_model(name: str) -> ModelOutline:
    """What timm says about a model, from a copy without memory.

    Args:
        name: of an architecture, or with the tag of its weights ("resnet50.a1_in1k").

    Raises:
        ValueError: timm knows no such model or weights, or cannot give its intermediate maps.
    """
    timm = import_timm()
    _check_name(timm, name)
    with torch.device("meta"):
        model = timm.create_model(name)
    if not hasattr(model, "forward_intermediates") or not getattr(model, "feature_info", None):
        raise ValueError(f"MODEL.TIMM.NAME={name!r}: timm {timm.__version__} gives no intermediate maps of this model")
    return ModelOutline(
        channels=[entry["num_chs"] for entry in model.feature_info],
        strides=[entry["reduction"] for entry in model.feature_info],
        accepted=frozenset(inspect.signature(type(model).__init__).parameters),
    )


def create_model(
    name: str, *, accepted: frozenset[str], in_channels: int, pretrained: bool, drop_path_rate: float
) -> nn.Module:
    """The model without its classifier.

    Args:
        name: see `describe_model`.
        accepted: see `ModelOutline`.
        in_channels: of the pictures.
        pretrained: fetch the weights that timm names for this model, or take them from its cache.
        drop_path_rate: stochastic depth of the last block; 0 is none.

    Raises:
        ValueError: the model has no stochastic depth, or no weights.
        FileNotFoundError: the weights cannot be fetched.
    """
    timm = import_timm()
    options: dict[str, Any] = {key: value for key, value in _ANY_SIZE.items() if key in accepted}
    if drop_path_rate:
        if "drop_path_rate" not in accepted:
            raise ValueError(
                f"MODEL.TIMM.DROP_PATH_RATE={drop_path_rate}, but {name} has no stochastic depth; set it to 0.0"
            )
        options["drop_path_rate"] = drop_path_rate
    if pretrained and not timm.is_model_pretrained(name):
        raise ValueError(f"MODEL.TIMM.PRETRAINED is True, but timm has no weights of {name}; set it to False")
    try:
        model: nn.Module = timm.create_model(
            name, pretrained=pretrained, num_classes=0, in_chans=in_channels, **options
        )
    except OSError as error:  # every error of a connection is one
        raise FileNotFoundError(
            f"MODEL.TIMM.PRETRAINED is True, but the weights of {name} cannot be downloaded: {error} Set it to False "
            f"and MODEL.WEIGHTS to a file of timm's weights that you have."
        ) from error
    return model


def check_colors(name: str, *, mean: Sequence[float], std: Sequence[float], channel_order: str) -> str | None:
    """What is wrong with the colors that a config prepares for timm's weights of a model; None: nothing.

    Args:
        name: of the model.
        mean, std: MODEL.PIXEL_MEAN and MODEL.PIXEL_STD, in the range 0..255.
        channel_order: INPUT.FORMAT.
    """
    trained = import_timm().get_pretrained_cfg(name)
    expected_mean, expected_std = ([255 * value for value in values] for values in (trained.mean, trained.std))
    pairs = zip([*mean, *std], [*expected_mean, *expected_std], strict=True)
    if channel_order == "RGB" and all(abs(given - expected) < 0.5 for given, expected in pairs):
        return None
    rounded = [[round(value, 3) for value in values] for values in (expected_mean, expected_std)]
    return (
        f"the weights of {name} were trained with INPUT.FORMAT RGB, MODEL.PIXEL_MEAN {rounded[0]} and "
        f"MODEL.PIXEL_STD {rounded[1]}, not {channel_order}, {list(mean)} and {list(std)}"
    )


def _check_name(timm: ModuleType, name: str) -> None:
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=5)
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists them all"
        raise ValueError(f"MODEL.TIMM.NAME={name!r} is no model of timm {timm.__version__}; {hint}")
    architecture, _, tag = name.partition(".")
    if tag and not timm.is_model_pretrained(name):
        known = ", ".join(timm.list_pretrained(f"{architecture}.*")) or "none"
        raise ValueError(f"MODEL.TIMM.NAME={name!r}: timm has no such weights of {architecture}; it has: {known}")
