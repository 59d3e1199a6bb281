"""Optimizer with few parameter groups, and gradient clipping over the whole model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import Tensor, nn

__all__ = ["GradientClipper", "build_gradient_clipper", "build_optimizer", "parameter_groups"]

#: Clips the gradients of the given parameters in place, or only measures; returns their joint norm before clipping.
GradientClipper = Callable[[Iterable[nn.Parameter]], Tensor]

_NORM_TYPES = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,  # Detectron2's NaiveSyncBatchNorm is one of these
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)
#: Position tables of Swin and layer scales (ConvNeXt, ViT): bare parameters, recognized by name.
_UNDECAYED_NAMES = ("relative_position_bias_table", "absolute_pos_embed", "gamma")
#: Parts of a backbone that no file of pre-trained weights holds: they learn at the full rate.
_NEW_IN_BACKBONE = "backbone.pyramid"


def parameter_groups(
    model: nn.Module,
    *,
    base_lr: float,
    weight_decay: float,
    weight_decay_norm: float,
    weight_decay_embed: float,
    backbone_multiplier: float,
) -> list[dict[str, Any]]:
    """The trainable parameters, one group per pair of learning rate and weight decay, in order of first use.

    The backbone learns `backbone_multiplier` times as fast. Normalizations, embeddings and position tables have their
    own weight decay; biases have not. Bare parameters of timm's models are not decayed where these say so (position
    embeddings, class tokens). The pixel decoder's level embedding is a bare parameter and is decayed like a
    weight, as in the published recipes.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    undecayed_by_declaration = _declared_undecayed(model)
    for module_name, module, name, parameter in _trainable_parameters(model):
        is_pretrained = "backbone" in module_name and _NEW_IN_BACKBONE not in module_name
        lr = base_lr * backbone_multiplier if is_pretrained else base_lr
        decay = weight_decay
        if parameter in undecayed_by_declaration or any(undecayed in name for undecayed in _UNDECAYED_NAMES):
            decay = 0.0
        if isinstance(module, _NORM_TYPES):
            decay = weight_decay_norm
        if isinstance(module, nn.Embedding):
            decay = weight_decay_embed
        groups.setdefault((lr, decay), []).append(parameter)
    return [{"params": parameters, "lr": lr, "weight_decay": decay} for (lr, decay), parameters in groups.items()]


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW or SGD as `SOLVER.OPTIMIZER` says.

    Clipping of single parameters (CLIP_TYPE "value" or "norm") happens inside the optimizer's step, by Detectron2; that
    of the whole model is `build_gradient_clipper`, because the training loop needs the norm anyway.
    """
    groups = parameter_groups(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        weight_decay_embed=cfg.SOLVER.WEIGHT_DECAY_EMBED,
        backbone_multiplier=cfg.SOLVER.BACKBONE_MULTIPLIER,
    )
    if not groups:
        raise ValueError("the model has no trainable parameters (MODEL.BACKBONE.FREEZE_AT?)")
    kind = cfg.SOLVER.OPTIMIZER
    optimizer: torch.optim.Optimizer
    if kind == "ADAMW":
        optimizer = torch.optim.AdamW(groups, lr=cfg.SOLVER.BASE_LR, fused=True)
    elif kind == "SGD":
        optimizer = torch.optim.SGD(groups, lr=cfg.SOLVER.BASE_LR, momentum=cfg.SOLVER.MOMENTUM, fused=True)
    else:
        raise ValueError(f"SOLVER.OPTIMIZER={kind!r} is unknown; choose from: ADAMW, SGD")
    clipping = cfg.SOLVER.CLIP_GRADIENTS
    if clipping.ENABLED and clipping.CLIP_TYPE != "full_model":
        clip_type = clipping.CLIP_TYPE
        if clip_type not in ("value", "norm"):
            raise ValueError(
                f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE={clip_type!r} is unknown; choose from: full_model, norm, value"
            )
        optimizer = maybe_add_gradient_clipping(cfg, optimizer)
    return optimizer


def build_gradient_clipper(cfg: CfgNode) -> GradientClipper:
    """Clips to the joint norm CLIP_VALUE when CLIP_TYPE is "full_model"; otherwise only measures."""
    clipping = cfg.SOLVER.CLIP_GRADIENTS
    clips = clipping.ENABLED and clipping.CLIP_TYPE == "full_model" and clipping.CLIP_VALUE > 0
    max_norm = float(clipping.CLIP_VALUE) if clips else float("inf")
    norm_type = float(clipping.NORM_TYPE) if clips else 2.0

    def clip(parameters: Iterable[nn.Parameter]) -> Tensor:
        if clips:
            return nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)
        return nn.utils.get_total_norm(
            [parameter.grad for parameter in parameters if parameter.grad is not None], norm_type
        )

    return clip


def _declared_undecayed(model: nn.Module) -> set[nn.Parameter]:
    """The parameters that modules name in `no_weight_decay()`, timm's convention."""
    declared: set[nn.Parameter] = set()
    for module in model.modules():
        declaration = getattr(module, "no_weight_decay", None)
        if callable(declaration):
            names = declaration()
            declared.update(parameter for name, parameter in module.named_parameters() if name in names)
    return declared


def _trainable_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """(module name, module, parameter name, parameter) in order of registration, shared parameters once."""
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                yield module_name, module, name, parameter
