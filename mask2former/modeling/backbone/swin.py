"""Swin Transformer backbone (arXiv:2103.14030): attention inside windows that shift by half a window every other block.

Maps stay (B, h, w, C) from the patch embedding to the outputs, so that sizes travel with the tensors.
"""
# B images, (H, W) pixels, (h, w) tokens of a stage, C channels, M window side.

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .windows import WindowAttention, join_windows, shifted_region_logits, split_into_windows

__all__ = ["D2SwinTransformer"]

STAGE_NAMES = ("res2", "res3", "res4", "res5")


class Mlp(nn.Module):
    """Two linear maps with GELU between."""

    def __init__(self, *, embed_dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, embed_dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class SwinBlock(nn.Module):
    """Window attention and MLP, each normalized before and added to its input (Sec. 3.2, Fig. 3b)."""

    def __init__(
        self,
        *,
        embed_dim: int,
        num_heads: int,
        window_size: int,
        shift: int,
        mlp_ratio: float,
        qkv_bias: bool,
        logit_scale: float | None,
        dropout: float,
        attention_dropout: float,
        drop_path: float,
    ) -> None:
        """Args:
        shift: rows and columns by which windows are displaced, 0 or half a window.
        drop_path: probability that a sample skips one of the two branches while training (stochastic depth).
        """
        super().__init__()
        self.window_size = window_size
        self.shift = shift
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(embed_dim)
        self.attn = WindowAttention(
            embed_dim=embed_dim,
            window_size=window_size,
            num_heads=num_heads,
            qkv_bias=qkv_bias,
            logit_scale=logit_scale,
            attention_dropout=attention_dropout,
            output_dropout=dropout,
        )
        self.norm2 = nn.LayerNorm(embed_dim)
        self.mlp = Mlp(embed_dim=embed_dim, hidden_dim=int(embed_dim * mlp_ratio), dropout=dropout)

    def forward(self, x_BhwC: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, h, w, C), any size."""
        x_BhwC = x_BhwC + self._maybe_drop(self._attend(self.norm1(x_BhwC)))
        return x_BhwC + self._maybe_drop(self.mlp(self.norm2(x_BhwC)))

    def _attend(self, x_BhwC: Tensor) -> Tensor:
        """Attention within the windows of a map that is padded to whole windows and shifted cyclically."""
        height, width = x_BhwC.shape[1:3]
        window, shift = self.window_size, self.shift
        # Padding follows the norm: the added tokens are zeros, which published models attend like any other token.
        x_BhwC = F.pad(x_BhwC, (0, 0, 0, -width % window, 0, -height % window))
        padded_height, padded_width = x_BhwC.shape[1:3]
        region_logits_VSS = None
        if shift:
            x_BhwC = x_BhwC.roll((-shift, -shift), dims=(1, 2))
            region_logits_VSS = shifted_region_logits(padded_height, padded_width, window, shift, x_BhwC.device)
        windows = split_into_windows(x_BhwC, window)
        x_BhwC = join_windows(self.attn(windows, region_logits_VSS), window, padded_height, padded_width)
        if shift:
            x_BhwC = x_BhwC.roll((shift, shift), dims=(1, 2))
        return x_BhwC[:, :height, :width]

    def _maybe_drop(self, branch_BhwC: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0.0:
            return branch_BhwC
        keep = 1.0 - self.drop_path
        factor_B111 = branch_BhwC.new_empty(len(branch_BhwC), 1, 1, 1).bernoulli_(keep) / keep
        return branch_BhwC * factor_B111


class PatchMerging(nn.Module):
    """Halve the map: four neighbors become one token of twice the width (Sec. 3.1)."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * embed_dim)
        self.reduction = nn.Linear(4 * embed_dim, 2 * embed_dim, bias=False)

    def forward(self, x_BhwC: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, ceil(h / 2), ceil(w / 2), 2C)."""
        height, width = x_BhwC.shape[1:3]
        x_BhwC = F.pad(x_BhwC, (0, 0, 0, width % 2, 0, height % 2))
        cells = x_BhwC.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, h/2, row, w/2, column, C)
        merged = cells.permute(0, 1, 3, 4, 2, 5).flatten(3)  # published channel order: the column changes slowest
        return self.reduction(self.norm(merged))


class SwinStage(nn.Module):
    """Blocks at one resolution, then, except after the last stage, patch merging."""

    def __init__(self, *, blocks: list[SwinBlock], downsample: PatchMerging | None, checkpoint_blocks: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.checkpoint_blocks = checkpoint_blocks

    def forward(self, x_BhwC: Tensor) -> tuple[Tensor, Tensor]:
        """(B, h, w, C) -> the stage's output of that size, and the next stage's input."""
        for block in self.blocks:
            if self.checkpoint_blocks and self.training:
                x_BhwC = checkpoint(block, x_BhwC, use_reentrant=False)
            else:
                x_BhwC = block(x_BhwC)
        return x_BhwC, x_BhwC if self.downsample is None else self.downsample(x_BhwC)


class PatchEmbedding(nn.Module):
    """One token per patch of pixels (Sec. 3.1)."""

    def __init__(self, *, patch_size: int, in_channels: int, embed_dim: int, normalize: bool) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(embed_dim) if normalize else None

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, h, w, C); the picture is padded with zeros to whole patches."""
        height, width = images_BCHW.shape[-2:]
        images_BCHW = F.pad(images_BCHW, (0, -width % self.patch_size, 0, -height % self.patch_size))
        tokens_BhwC = self.proj(images_BCHW).permute(0, 2, 3, 1)
        return tokens_BhwC if self.norm is None else self.norm(tokens_BhwC)


@BACKBONE_REGISTRY.register()
class D2SwinTransformer(Backbone):
    """Swin Transformer as a Detectron2 backbone with maps "res2".."res5" at strides 4, 8, 16 and 32."""

    @configurable
    def __init__(
        self,
        *,
        embed_dim: int,
        depths: list[int],
        num_heads: list[int],
        window_size: int,
        patch_size: int = 4,
        in_channels: int = 3,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        logit_scale: float | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path_rate: float = 0.0,
        patch_norm: bool = True,
        absolute_position_size: int | None = None,
        out_features: tuple[str, ...] = STAGE_NAMES,
        checkpoint_blocks: bool = False,
    ) -> None:
        """Args:
        embed_dim: channels of the first stage; each further stage doubles them.
        depths: blocks of each of the four stages.
        window_size: M, in tokens; it is not reduced on maps smaller than a window.
        logit_scale: factor of the attention logits; None is 1 / sqrt(head width).
        drop_path_rate: stochastic depth of the last block; earlier blocks have linearly less.
        absolute_position_size: side in pixels of the pictures that an absolute position embedding was trained on;
            None: no such embedding.
        checkpoint_blocks: recompute blocks in the backward pass.
        """
        super().__init__()
        _check_stages(depths, num_heads, out_features)
        self.patch_embed = PatchEmbedding(
            patch_size=patch_size, in_channels=in_channels, embed_dim=embed_dim, normalize=patch_norm
        )
        self.absolute_pos_embed: nn.Parameter | None = None
        if absolute_position_size is not None:
            side = absolute_position_size // patch_size
            self.absolute_pos_embed = nn.Parameter(torch.empty(1, embed_dim, side, side))
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        self.pos_drop = nn.Dropout(dropout)

        num_blocks = sum(depths)
        drop_paths = (drop_path_rate * i / max(num_blocks - 1, 1) for i in range(num_blocks))
        widths = [embed_dim * 2**i for i in range(len(depths))]
        stages = []
        for i, (width, depth, heads) in enumerate(zip(widths, depths, num_heads, strict=True)):
            blocks = [
                SwinBlock(
                    embed_dim=width,
                    num_heads=heads,
                    window_size=window_size,
                    shift=window_size // 2 if j % 2 else 0,
                    mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias,
                    logit_scale=logit_scale,
                    dropout=dropout,
                    attention_dropout=attention_dropout,
                    drop_path=next(drop_paths),
                )
                for j in range(depth)
            ]
            downsample = PatchMerging(width) if i + 1 < len(depths) else None
            stages.append(SwinStage(blocks=blocks, downsample=downsample, checkpoint_blocks=checkpoint_blocks))
        self.layers = nn.ModuleList(stages)
        # Checkpoints hold the norms of all four outputs, whichever are returned.
        for i, width in enumerate(widths):
            self.add_module(f"norm{i}", nn.LayerNorm(width))
        self.apply(_init_linear)

        self._out_features = [name for name in STAGE_NAMES if name in out_features]
        self._out_feature_channels = dict(zip(STAGE_NAMES, widths, strict=True))
        self._out_feature_strides = {name: patch_size * 2**i for i, name in enumerate(STAGE_NAMES)}

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        swin = cfg.MODEL.SWIN
        return {
            "embed_dim": swin.EMBED_DIM,
            "depths": list(swin.DEPTHS),
            "num_heads": list(swin.NUM_HEADS),
            "window_size": swin.WINDOW_SIZE,
            "patch_size": swin.PATCH_SIZE,
            "in_channels": input_shape.channels or 3,
            "mlp_ratio": swin.MLP_RATIO,
            "qkv_bias": swin.QKV_BIAS,
            "logit_scale": swin.QK_SCALE,
            "dropout": swin.DROP_RATE,
            "attention_dropout": swin.ATTN_DROP_RATE,
            "drop_path_rate": swin.DROP_PATH_RATE,
            "patch_norm": swin.PATCH_NORM,
            "absolute_position_size": swin.PRETRAIN_IMG_SIZE if swin.APE else None,
            "out_features": tuple(swin.OUT_FEATURES),
            "checkpoint_blocks": swin.USE_CHECKPOINT,
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Features of normalized pictures.

        Args:
            images: (B, 3, H, W) of any size.

        Returns:
            Name -> (B, C, h, w), channels last in memory; h is ceil(H / 4) at "res2" and ceil(h / 2) one stage later.
        """
        if images.dim() != 4:
            raise ValueError(f"D2SwinTransformer reads images (B, 3, H, W), got {tuple(images.shape)}")
        x_BhwC = self.patch_embed(images)
        if self.absolute_pos_embed is not None:
            position_1Chw = F.interpolate(self.absolute_pos_embed, size=x_BhwC.shape[1:3], mode="bicubic")
            x_BhwC = x_BhwC + position_1Chw.permute(0, 2, 3, 1)
        x_BhwC = self.pos_drop(x_BhwC)
        outputs = {}
        num_stages = 1 + STAGE_NAMES.index(self._out_features[-1])  # deeper ones would be computed for nothing
        for i, name in enumerate(STAGE_NAMES[:num_stages]):
            stage_output_BhwC, x_BhwC = self.layers[i](x_BhwC)
            if name in self._out_features:
                outputs[name] = self.get_submodule(f"norm{i}")(stage_output_BhwC).permute(0, 3, 1, 2)
        return outputs

    @property
    def size_divisibility(self) -> int:
        return 32


def _check_stages(depths: list[int], num_heads: list[int], out_features: tuple[str, ...]) -> None:
    if len(depths) != len(STAGE_NAMES) or len(num_heads) != len(STAGE_NAMES):
        raise ValueError(
            f"MODEL.SWIN.DEPTHS={depths} and MODEL.SWIN.NUM_HEADS={num_heads} must have one entry for each of the "
            f"{len(STAGE_NAMES)} stages"
        )
    unknown = [name for name in out_features if name not in STAGE_NAMES]
    if unknown or not out_features:
        raise ValueError(f"MODEL.SWIN.OUT_FEATURES={list(out_features)} must name some of {', '.join(STAGE_NAMES)}")


def _init_linear(module: nn.Module) -> None:
    """Initialization for training from nothing (the original meant to do this and never called it)."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
