"""Configuration: every key of this project, declared once, with its published default.

Third-party YAML files rely on the defaults, so a published key never changes its default; keys marked "new" did not
exist in the original and their defaults reproduce the published behavior.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config

__all__ = ["add_maskformer2_config", "load_config", "on_available_device"]


def add_maskformer2_config(cfg: CfgNode) -> None:
    """Add the keys of Mask2Former, MaskFormer and the video model to Detectron2's defaults (in place).

    Call `detectron2.projects.deeplab.add_deeplab_config(cfg)` first: published files also name DeepLab's keys.
    """
    _add_input_config(cfg)
    _add_solver_config(cfg)
    _add_mask_former_config(cfg)
    _add_pixel_decoder_config(cfg)
    _add_swin_config(cfg)
    _add_timm_config(cfg)
    _add_run_config(cfg)


def load_config(config_file: str | Path, overrides: Sequence[str] = ()) -> CfgNode:
    """Defaults, then the YAML file with its bases, then `KEY VALUE` overrides; frozen.

    Raises:
        FileNotFoundError: there is no such file, or a base of it is missing.
        KeyError: the file or the overrides name a key that does not exist.
        ValueError: the file is no YAML mapping, or a value has the wrong type.
    """
    if not config_file:
        raise FileNotFoundError("no config file is given: add --config-file, e.g. configs/digits/panoptic.yaml")
    if not Path(config_file).is_file():
        raise FileNotFoundError(f"config file {str(config_file)!r} does not exist (--config-file)")
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_maskformer2_config(cfg)
    _merge_file(cfg, config_file)
    try:
        cfg.merge_from_list(list(overrides))
    except AssertionError as error:  # so says yacs that an override names no key, or lacks its value
        raise KeyError(f"overrides (KEY VALUE ...): {error}") from error
    cfg.freeze()
    return cfg


def _merge_file(cfg: CfgNode, config_file: str | Path) -> None:
    """Merge a YAML file and its bases; every error names the file."""
    source = f"config file {str(config_file)!r}"
    try:
        cfg.merge_from_file(str(config_file), allow_unsafe=False)
    except KeyError as error:
        raise KeyError(f"{source}: {error.args[0]}") from error
    except OSError as error:
        raise FileNotFoundError(f"{source}: its _BASE_ cannot be read: {error}") from error
    except (ValueError, yaml.YAMLError) as error:
        cure = ""
        if "yaml.org,2002:python/" in str(error):  # as the original's files compute the training sizes
            example = "configs/_base_/datasets/ade20k_512.yaml"
            cure = f"\nA tag that runs code is refused: write the values out, as {example} does"
        raise ValueError(f"{source}: {error}{cure}") from error
    except (AttributeError, TypeError) as error:  # from fvcore, for a text, a list or nothing
        raise ValueError(f"{source} or its _BASE_ is not a YAML mapping of keys to values") from error


def on_available_device(cfg: CfgNode) -> CfgNode:
    """The config, frozen, with MODEL.DEVICE "cpu" where it asks for CUDA and this machine has none.

    Published files rely on Detectron2's default "cuda".
    """
    if not cfg.MODEL.DEVICE.startswith("cuda") or torch.cuda.is_available():
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def _add_input_config(cfg: CfgNode) -> None:
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"  # a name in DATASET_MAPPER_REGISTRY
    cfg.INPUT.COLOR_AUG_SSD = False  # append SSD color jitter to the augmentations
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0  # largest share of one class in a training crop; 1.0 accepts any crop
    cfg.INPUT.SIZE_DIVISIBILITY = -1  # samples are padded to a multiple of this many pixels; <= 0 pads nothing
    cfg.INPUT.IMAGE_SIZE = 1024  # side in pixels of the square of large-scale jittering (LSJ)
    cfg.INPUT.MIN_SCALE = 0.1  # LSJ: smallest scale relative to IMAGE_SIZE
    cfg.INPUT.MAX_SCALE = 2.0  # LSJ: largest scale relative to IMAGE_SIZE
    # new: False keeps a segment that the crop removed as an empty target, as the published models were trained;
    # True drops it together with its label. The LSJ instance mapper always drops.
    cfg.INPUT.DROP_EMPTY_MASKS = False
    cfg.INPUT.REDUCED_DECODING = False  # new: True decodes JPEG files smaller where augmentation shrinks them (faster)
    # Video clips
    cfg.INPUT.SAMPLING_FRAME_NUM = 2  # frames of one training clip
    cfg.INPUT.SAMPLING_FRAME_RANGE = 20  # largest distance of a frame from the clip's reference frame
    cfg.INPUT.SAMPLING_FRAME_SHUFFLE = False  # shuffle the frames of a clip instead of keeping them in order
    cfg.INPUT.SAMPLING_WITH_REPLACEMENT = (
        True  # new: a clip may hold a frame twice, as the published models were trained
    )
    # new: "last_frame": an object that the clip's last frame lacks counts as "no object", as published | "any_frame"
    cfg.INPUT.CLIP_LABELS = "last_frame"
    cfg.INPUT.AUGMENTATIONS = []  # any of "brightness", "contrast", "saturation", "rotation"
    # new: share of each data set of DATASETS.TRAIN in an epoch, e.g. [1, 2]; [] takes every picture and video once
    cfg.DATALOADER.DATASET_SHARES = []
    # new: False stops at the first unreadable file; True names it, counts it and takes another sample
    cfg.DATALOADER.SKIP_BROKEN = False


def _add_solver_config(cfg: CfgNode) -> None:
    cfg.SOLVER.OPTIMIZER = "ADAMW"  # "ADAMW" | "SGD"
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0  # weight decay of nn.Embedding
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1  # learning rate of the backbone relative to BASE_LR
    cfg.SOLVER.POLY_LR_POWER = 0.9  # exponent of WarmupPolyLR
    cfg.SOLVER.POLY_LR_CONSTANT_ENDING = 0.0  # floor of WarmupPolyLR as a fraction of BASE_LR
    cfg.SOLVER.ACCUMULATION_STEPS = 1  # new: micro-batches per optimizer step; together they hold IMS_PER_BATCH images
    cfg.SOLVER.AMP.PRECISION = "fp16"  # new: "fp16" (CUDA, scaled loss) | "bf16"; read when SOLVER.AMP.ENABLED


def _add_mask_former_config(cfg: CfgNode) -> None:
    cfg.MODEL.MASK_FORMER = CfgNode()
    node = cfg.MODEL.MASK_FORMER
    # Loss
    node.DEEP_SUPERVISION = True  # a loss after every decoder layer, not only after the last
    node.NO_OBJECT_WEIGHT = 0.1  # weight of the no-object class in the classification loss
    node.CLASS_WEIGHT = 1.0  # classification: loss weight and matching cost weight
    node.DICE_WEIGHT = 1.0  # dice: loss weight and matching cost weight
    node.MASK_WEIGHT = 20.0  # mask cross-entropy: loss weight and matching cost weight
    node.TRAIN_NUM_POINTS = 112 * 112  # points at which a pair of masks is compared
    node.OVERSAMPLE_RATIO = 3.0  # candidates drawn per point when looking for uncertain ones
    node.IMPORTANCE_SAMPLE_RATIO = 0.75  # share of points that are the most uncertain candidates
    # Transformer decoder
    node.TRANSFORMER_DECODER_NAME = "MultiScaleMaskedTransformerDecoder"  # a name in TRANSFORMER_DECODER_REGISTRY
    # "multi_scale_pixel_decoder" | "transformer_encoder" | "pixel_embedding" | a backbone feature such as "res5"
    node.TRANSFORMER_IN_FEATURE = "res5"
    node.NHEADS = 8
    node.DROPOUT = 0.1  # not read by the masked decoder, which has none
    node.DIM_FEEDFORWARD = 2048  # inner width of the decoder's feed-forward networks
    node.ENC_LAYERS = 0  # encoder layers inside the MaskFormer (DETR-style) decoder
    node.DEC_LAYERS = 6  # prediction layers; the masked decoder counts its initial prediction as one of them
    node.PRE_NORM = False
    node.HIDDEN_DIM = 256
    node.NUM_OBJECT_QUERIES = 100
    node.ENFORCE_INPUT_PROJ = False  # project the decoder's inputs even where the widths already agree
    node.SIZE_DIVISIBILITY = 32  # images are padded to a multiple of this; negative takes the backbone's own value
    node.CHECKPOINT_TRANSFORMER = False  # new: recompute transformer layers in the backward pass to save memory
    # Inference
    node.TEST = CfgNode()
    node.TEST.SEMANTIC_ON = True
    node.TEST.INSTANCE_ON = False
    node.TEST.PANOPTIC_ON = False
    node.TEST.OBJECT_MASK_THRESHOLD = 0.0  # panoptic: a query takes part when its class score is above this
    node.TEST.OVERLAP_THRESHOLD = 0.0  # panoptic: smallest visible share of a segment
    node.TEST.PRECISION = "fp32"  # new: "fp32" | "bf16" | "fp16" (needs a GPU): autocast of the network in inference
    # resize masks to the output size before (True) or after (False) the semantic merge
    node.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE = False
    # new: "scores" | "labels" (a label map and its confidence) | "probabilities" (with sum 1, and their entropy)
    node.TEST.SEMANTIC_OUTPUT = "scores"
    node.TEST.INSTANCE_OUTPUT = "masks"  # new: "masks" | "run_lengths" (COCO's, for large pictures)
    # new: MiB that post-processing may take for its blocks of rows, beside the results and the masks at stride 4; the
    # CPU takes less of itself, what fits the caches of its cores
    node.TEST.MEMORY_BUDGET_MB = 256


def _add_run_config(cfg: CfgNode) -> None:
    cfg.MODEL.COMPILE = False  # new: torch.compile of the network, in training too; takes minutes at the first call
    # new: on a GPU the network of inference is recorded for a size of pictures that has come a few times, and replayed
    # by one launch; without it the GPU waits for Python where pictures come one by one
    cfg.MODEL.CUDA_GRAPHS = True
    # new: load a checkpoint whose class head has another number of classes and start that head afresh
    cfg.MODEL.WEIGHTS_ALLOW_HEAD_MISMATCH = False
    cfg.MODEL.RESNETS.USE_CHECKPOINT = False  # new: recompute residual blocks in the backward pass
    cfg.TEST.IMS_PER_BATCH = 1  # new: pictures of equal input size that a process evaluates at once
    # new: where instances are evaluated, boundary AP too (arXiv:2103.16562; task "boundary", dilation ratio 0.02)
    cfg.TEST.BOUNDARY_AP = False


def _add_pixel_decoder_config(cfg: CfgNode) -> None:
    node = cfg.MODEL.SEM_SEG_HEAD
    node.PIXEL_DECODER_NAME = "BasePixelDecoder"  # a name in PIXEL_DECODER_REGISTRY
    node.MASK_DIM = 256  # width of the per-pixel embeddings
    node.TRANSFORMER_ENC_LAYERS = 0  # transformer layers inside the pixel decoder
    node.FORCE_FP32 = False  # new: True keeps the pixel decoder in float32 under autocast, as the original does
    node.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = ["res3", "res4", "res5"]
    # Published models have 4 points per head and level and MODEL.MASK_FORMER.NHEADS heads whatever the next two keys
    # say; they exist because published files name them, and other values are refused instead of ignored.
    node.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS = 4
    node.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = 8


def _add_swin_config(cfg: CfgNode) -> None:
    cfg.MODEL.SWIN = CfgNode()
    node = cfg.MODEL.SWIN
    node.PRETRAIN_IMG_SIZE = 224  # pixels; only sets the size of the absolute position embedding
    node.PATCH_SIZE = 4  # pixels
    node.EMBED_DIM = 96  # channels of the first stage; each further stage doubles them
    node.DEPTHS = [2, 2, 6, 2]  # blocks per stage
    node.NUM_HEADS = [3, 6, 12, 24]  # attention heads per stage
    node.WINDOW_SIZE = 7  # tokens
    node.MLP_RATIO = 4.0
    node.QKV_BIAS = True
    node.QK_SCALE = None  # None: 1 / sqrt(head width)
    node.DROP_RATE = 0.0
    node.ATTN_DROP_RATE = 0.0
    node.DROP_PATH_RATE = 0.3  # stochastic depth of the last block; earlier blocks have linearly less
    node.APE = False  # absolute position embedding
    node.PATCH_NORM = True  # layer norm after the patch embedding
    node.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    node.USE_CHECKPOINT = False  # recompute blocks in the backward pass


def _add_timm_config(cfg: CfgNode) -> None:
    cfg.MODEL.TIMM = CfgNode()  # new, all of it; read by the backbone "TimmBackbone"
    node = cfg.MODEL.TIMM
    node.NAME = ""  # of a model of timm, e.g. "efficientnet_b0", or with the tag of its weights, "resnet50.a1_in1k"
    node.PRETRAINED = False  # start from the weights that timm downloads; not when MODEL.WEIGHTS names a file
    node.DROP_PATH_RATE = 0.0  # stochastic depth of the last block; earlier blocks have less
    # Batch norm: "" learns from the batch of each process, "SyncBN" from all processes, "FrozenBN" keeps loaded values
    node.NORM = ""
    node.FREEZE = False  # nothing of the timm model learns (MODEL.BACKBONE.FREEZE_AT is not read)
    node.USE_CHECKPOINT = False  # recompute blocks in the backward pass
    node.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
