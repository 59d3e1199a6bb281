"""Head of Mask2Former and MaskFormer: a pixel decoder, then a transformer decoder (arXiv:2112.01527, Sec. 3.1)."""
# L prediction layers, B clips, T frames (1 for images), Q queries, K classes, (H4, W4) cells at stride 4.

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from ...registry import PIXEL_DECODER_REGISTRY, TRANSFORMER_DECODER_REGISTRY, lookup
from ..masks import MaskLogits, Predictions

__all__ = [
    "MaskFormerHead",
    "build_pixel_decoder",
    "build_transformer_decoder",
    "decoder_input_channels",
    "pick_decoder_input",
    "pixel_decoder_inputs",
]


def build_pixel_decoder(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """The pixel decoder that `MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME` names (contract in `mask2former.registry`)."""
    key = "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME"
    name = cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME
    factory = lookup(PIXEL_DECODER_REGISTRY, name, key)
    # A head, which the registry has too, would build its own pixel decoder, and so on without end.
    if isinstance(factory, type):
        _check_pixel_decoder(factory, f"{key}={name!r}")
    pixel_decoder: nn.Module = factory(cfg, input_shape)
    _check_pixel_decoder(pixel_decoder, f"{key}={name!r}")
    return pixel_decoder


def _check_pixel_decoder(candidate: nn.Module | type, setting: str) -> None:
    if not callable(getattr(candidate, "forward_features", None)):
        raise ValueError(f"{setting} is no pixel decoder: it has no method forward_features(features)")


def build_transformer_decoder(cfg: CfgNode, in_channels: int, mask_classification: bool = True) -> nn.Module:
    """The decoder that `MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME` names (contract in `mask2former.registry`)."""
    key = "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME"
    name = cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME
    return lookup(TRANSFORMER_DECODER_REGISTRY, name, key)(cfg, in_channels, mask_classification)


def pixel_decoder_inputs(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, ShapeSpec]:
    """The backbone's maps that `MODEL.SEM_SEG_HEAD.IN_FEATURES` names."""
    in_features = cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES
    if not in_features or not set(in_features) <= set(input_shape):
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.IN_FEATURES={in_features} must name some of the backbone's outputs: "
            f"{', '.join(input_shape)}"
        )
    return {name: shape for name, shape in input_shape.items() if name in in_features}


def decoder_input_channels(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> int:
    """Channels of what `MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE` names."""
    decoder_input = cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE
    channels = {
        "multi_scale_pixel_decoder": cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM,
        "transformer_encoder": cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM,
        "pixel_embedding": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
        **{name: shape.channels for name, shape in input_shape.items()},
    }
    if decoder_input not in channels:
        raise ValueError(
            f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE={decoder_input!r} is unknown; choose from: {', '.join(channels)}"
        )
    return channels[decoder_input]


def pick_decoder_input(
    name: str, features: dict[str, Tensor], decoded: tuple[Tensor, Tensor | None, list[Tensor]]
) -> Any:
    """What the transformer decoder reads.

    Args:
        name: see `MaskFormerHead`.
        features: the backbone's maps.
        decoded: what the pixel decoder made of them.

    Returns:
        One map (N, C, h, w), or three of them.
    """
    mask_features, encoder_features, multi_scale = decoded
    own = {
        "multi_scale_pixel_decoder": multi_scale,
        "transformer_encoder": encoder_features,
        "pixel_embedding": mask_features,
    }
    picked = own.get(name, features.get(name))
    if picked is None:
        raise ValueError(
            f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE={name!r} is not produced by the pixel decoder that "
            "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME names"
        )
    return picked


@SEM_SEG_HEADS_REGISTRY.register()
class MaskFormerHead(nn.Module):
    """Backbone features in, class and mask predictions out."""

    @configurable
    def __init__(
        self, *, in_features: list[str], pixel_decoder: nn.Module, transformer_decoder: nn.Module, decoder_input: str
    ) -> None:
        """Args:
        in_features: backbone maps that the pixel decoder reads.
        pixel_decoder: see `PIXEL_DECODER_REGISTRY`.
        transformer_decoder: see `TRANSFORMER_DECODER_REGISTRY`.
        decoder_input: what the transformer decoder reads: "multi_scale_pixel_decoder", "transformer_encoder",
            "pixel_embedding" or the name of a backbone map.
        """
        super().__init__()
        self.in_features = in_features
        self.pixel_decoder = pixel_decoder
        self.predictor = transformer_decoder
        self.decoder_input = decoder_input

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        inputs = pixel_decoder_inputs(cfg, input_shape)
        return {
            "in_features": list(inputs),
            "pixel_decoder": build_pixel_decoder(cfg, inputs),
            "transformer_decoder": build_transformer_decoder(cfg, decoder_input_channels(cfg, input_shape)),
            "decoder_input": cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE,
        }

    def predict(self, features: dict[str, Tensor], *, num_frames: int = 1, all_layers: bool = False) -> Predictions:
        """Predictions with masks left as factors, so that a caller multiplies no more of them than it reads.

        Args:
            features: backbone maps, name -> (B*T, C, h, w), frame index fastest.
            num_frames: T.
            all_layers: every prediction layer instead of only the last.
        """
        pixel_features = {name: features[name] for name in self.in_features}
        decoded = self.pixel_decoder.forward_features(pixel_features)  # type: ignore[operator]
        decoder_features = pick_decoder_input(self.decoder_input, features, decoded)
        return self.predictor(decoder_features, decoded[0], num_frames=num_frames, all_layers=all_layers)

    def forward(self, features: dict[str, Tensor], num_frames: int = 1) -> dict[str, Any]:
        """Predictions in the published form, with every mask multiplied out.

        Returns:
            `pred_logits` (B, Q, K + 1) and `pred_masks`, logits (B, Q, H4, W4), or (B, Q, T, H4, W4) for clips with
            T > 1; while training also `aux_outputs`, a list of the same for every earlier prediction layer.
        """
        predictions = self.predict(features, num_frames=num_frames, all_layers=self.training)

        def published(layer: int) -> dict[str, Tensor]:
            return {
                "pred_logits": predictions.class_logits[layer],
                "pred_masks": _without_single_frame(predictions.masks.layer(layer)),
            }

        outputs: dict[str, Any] = published(-1)
        if self.training:
            outputs["aux_outputs"] = [published(layer) for layer in range(len(predictions.class_logits) - 1)]
        return outputs


def _without_single_frame(masks: MaskLogits) -> Tensor:
    logits_BQTHW = masks.dense()
    return logits_BQTHW.squeeze(2) if logits_BQTHW.shape[2] == 1 else logits_BQTHW
