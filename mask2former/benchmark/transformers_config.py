"""The architecture of a config in the words of transformers."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode

__all__ = ["transformers_config"]


def transformers_config(cfg: CfgNode) -> Any:
    """The `Mask2FormerConfig` of the same architecture.

    Raises:
        ValueError: transformers has no such architecture; the message names the config key.
        ModuleNotFoundError: transformers is not installed (extra "hf").
    """
    import transformers

    # Their constructors take more than their annotations say.
    make_config: Any = transformers.Mask2FormerConfig
    head, decoder = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    for key, value, needed in (
        ("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", head.PIXEL_DECODER_NAME, "MSDeformAttnPixelDecoder"),
        (
            "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME",
            decoder.TRANSFORMER_DECODER_NAME,
            "MultiScaleMaskedTransformerDecoder",
        ),
    ):
        if value != needed:
            raise ValueError(f"transformers has no {key}={value!r}, only {needed}")
    return make_config(
        backbone_config=_transformers_backbone(cfg),
        num_labels=head.NUM_CLASSES,
        feature_size=head.CONVS_DIM,
        mask_feature_size=head.MASK_DIM,
        encoder_layers=head.TRANSFORMER_ENC_LAYERS,
        hidden_dim=decoder.HIDDEN_DIM,
        dim_feedforward=decoder.DIM_FEEDFORWARD,
        decoder_layers=decoder.DEC_LAYERS,
        num_attention_heads=decoder.NHEADS,
        num_queries=decoder.NUM_OBJECT_QUERIES,
        pre_norm=decoder.PRE_NORM,
        enforce_input_projection=decoder.ENFORCE_INPUT_PROJ,
    )


def _transformers_backbone(cfg: CfgNode) -> Any:
    import transformers

    make_swin: Any = transformers.SwinConfig
    make_resnet: Any = transformers.ResNetConfig
    stages = ["stage1", "stage2", "stage3", "stage4"]
    if cfg.MODEL.BACKBONE.NAME == "D2SwinTransformer":
        swin = cfg.MODEL.SWIN
        return make_swin(
            image_size=swin.PRETRAIN_IMG_SIZE,
            embed_dim=swin.EMBED_DIM,
            depths=list(swin.DEPTHS),
            num_heads=list(swin.NUM_HEADS),
            window_size=swin.WINDOW_SIZE,
            mlp_ratio=swin.MLP_RATIO,
            use_absolute_embeddings=swin.APE,
            out_features=stages,
        )
    depths = {50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3]}
    resnet = cfg.MODEL.RESNETS
    if cfg.MODEL.BACKBONE.NAME != "build_resnet_backbone" or resnet.DEPTH not in depths:
        raise ValueError(
            f"transformers is not set up here for MODEL.BACKBONE.NAME={cfg.MODEL.BACKBONE.NAME!r} with "
            f"MODEL.RESNETS.DEPTH={resnet.DEPTH}, only for Swin and ResNet {', '.join(map(str, depths))}"
        )
    if resnet.WIDTH_PER_GROUP * 4 != resnet.RES2_OUT_CHANNELS or resnet.NUM_GROUPS != 1 or resnet.STRIDE_IN_1X1:
        raise ValueError("transformers has only plain ResNets (MODEL.RESNETS: NUM_GROUPS 1, STRIDE_IN_1X1 False)")
    return make_resnet(
        embedding_size=resnet.STEM_OUT_CHANNELS,
        hidden_sizes=[resnet.RES2_OUT_CHANNELS * 2**index for index in range(4)],
        depths=depths[resnet.DEPTH],
        layer_type="bottleneck",
        out_features=stages,
    )
