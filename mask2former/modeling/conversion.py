"""Weights of any kind written as any other, and backbones of other libraries as Detectron2's files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from torch import Tensor

from mask2former.modeling.load_report import examples
from mask2former.modeling.transformers_folder import write_transformers
from mask2former.modeling.weight_files import read_weight_file
from mask2former.modeling.weight_fitting import fit_weights
from mask2former.modeling.weight_names import current_names, is_classifier, is_derived, torchvision_to_ours, unwrapped
from mask2former.modeling.weight_sources import TRANSFORMERS_PREFIX, read_weights
from mask2former.modeling.weight_writing import check_weights_path, write_pickle, write_weights

__all__ = ["DTYPES", "convert_checkpoint", "convert_swin", "convert_torchvision"]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
#: Tensors of torchvision's bottleneck and basic ResNets.
_TORCHVISION_NAME = re.compile(
    r"(conv1|bn1|fc|layer[1-4]\.\d+\.(conv[123]|bn[123]|downsample\.[01]))"
    r"\.(weight|bias|running_mean|running_var|num_batches_tracked)"
)
#: Tensors of Swin's authors' classifiers, 1k and 22k.
_SWIN_NAME = re.compile(
    r"absolute_pos_embed|patch_embed\.(proj|norm)\.(weight|bias)|(norm|head)\.(weight|bias)"
    r"|layers\.\d\.downsample\.(norm\.(weight|bias)|reduction\.weight)"
    r"|layers\.\d\.blocks\.\d+\.(attn_mask|attn\.relative_position_(bias_table|index)"
    r"|(norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12])\.(weight|bias))"
)


def convert_checkpoint(
    source: str | Path,
    target: str | Path,
    *,
    cfg: CfgNode | None = None,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Read weights of any kind and write them as `target` says; published old names become current ones.

    Only weights are converted: a checkpoint of a run loses the state of its optimizer.

    Args:
        source: anything that MODEL.WEIGHTS takes.
        target: a file named .pkl (Detectron2), .pth or .safetensors; or a folder of transformers, "hf:FOLDER" or a name
            without suffix.
        cfg: of the model, with which names and shapes are compared; transformers folders need it. A backbone file gets
            the names that it has in this model.
        dtype: of floating tensors; None keeps that of the source.
        overwrite: replace a target that exists.

    Returns:
        Names that were written.

    Raises:
        FileExistsError, FileNotFoundError, ValueError: the target exists and is not to be replaced, or cannot hold the
            weights; the source cannot be read, or is not of the config's model.
    """
    write = _writer(target, cfg, dtype)
    _spare(target, overwrite)
    tensors = dict(current_names(unwrapped(read_weights(source).tensors)))
    if cfg is not None:
        tensors = _tensors_of_model(cfg, tensors, str(source))
    write(tensors)
    return list(tensors)


def convert_torchvision(source: str | Path, target: str | Path, *, overwrite: bool = False) -> dict[str, str]:
    """Write a ResNet of torchvision (or timm) as a backbone file of Detectron2, without its classifier.

    It belongs to pictures in RGB with the usual mean and deviation, and to MODEL.RESNETS.STRIDE_IN_1X1 False.

    Returns:
        Name in the source -> name in the target.

    Raises:
        FileExistsError, FileNotFoundError, ValueError: the target exists and is not to be replaced, or is no .pkl; the
            source cannot be read or is no such ResNet.
    """
    _check_backbone_path(target, overwrite)
    tensors = _tensors_like(source, _TORCHVISION_NAME, "layer4.0.conv1.weight", "ResNet of torchvision")
    names = {name: torchvision_to_ours(name) for name in tensors if not is_classifier(name)}
    arrays = {new_name: tensors[name].numpy() for name, new_name in names.items()}
    write_pickle({"model": arrays, "__author__": "torchvision", "matching_heuristics": True}, target)
    return names


def convert_swin(source: str | Path, target: str | Path, *, overwrite: bool = False) -> int:
    """Write an ImageNet file of Swin's authors as a backbone file of Detectron2: the same tensors and names.

    Returns:
        How many tensors that are.

    Raises:
        FileExistsError, FileNotFoundError, ValueError: as `convert_torchvision` does.
    """
    _check_backbone_path(target, overwrite)
    tensors = _tensors_like(source, _SWIN_NAME, "layers.0.downsample.reduction.weight", "Swin of its authors")
    write_pickle({"model": dict(tensors), "__author__": "third_party", "matching_heuristics": True}, target)
    return len(tensors)


def _check_backbone_path(path: str | Path, overwrite: bool) -> None:
    if Path(path).suffix != ".pkl":
        raise ValueError(f"{str(path)!r} must end in .pkl: Detectron2 takes files of other names for files of torch")
    check_weights_path(path)
    _spare(path, overwrite)


def _spare(target: str | Path, overwrite: bool) -> None:
    """Raise FileExistsError rather than replace a file, or a folder that is not empty."""
    path = Path(str(target).removeprefix(TRANSFORMERS_PREFIX))
    if not overwrite and (any(path.iterdir()) if path.is_dir() else path.exists()):
        raise FileExistsError(f"{str(path)!r} exists already: add --overwrite to replace it, or choose another name")


def _tensors_like(source: str | Path, known: re.Pattern[str], needed: str, kind: str) -> Mapping[str, Tensor]:
    tensors = unwrapped(read_weight_file(source).tensors)
    foreign = [name for name in tensors if not known.fullmatch(name)]
    if needed not in tensors or foreign:
        what = f"it lacks {needed!r}" if needed not in tensors else f"it holds {examples(foreign)}"
        raise ValueError(
            f"{str(source)!r} is no {kind}: {what}. MODEL.WEIGHTS takes many other files as they are; see also "
            "tools/convert_checkpoint.py"
        )
    return tensors


def _tensors_of_model(cfg: CfgNode, tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The tensors under the names of the config's model, or ValueError where they do not fit it as they are."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"  # shapes without memory
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in build_model(cfg).state_dict().items()}
    chosen, report = fit_weights(shapes, tensors, source=source)
    if report.resized:
        raise ValueError(
            f"checkpoint {source!r} is not of the model of this config, which has other sizes of "
            f"{examples(report.resized)}"
        )
    derived = {
        name: tensor for name, tensor in tensors.items() if is_derived(name) and shapes.get(name) == tuple(tensor.shape)
    }
    return {**chosen, **derived}


def _writer(
    target: str | Path, cfg: CfgNode | None, dtype: torch.dtype | None
) -> Callable[[Mapping[str, Tensor]], None]:
    """What writes `target`; whatever speaks against it is an error before anything is read."""
    path = Path(str(target).removeprefix(TRANSFORMERS_PREFIX))
    is_folder = str(target).startswith(TRANSFORMERS_PREFIX) or not path.suffix or path.is_dir()
    if not is_folder:
        check_weights_path(path, dtype)
        return lambda tensors: write_weights(tensors, path, dtype=dtype)
    if cfg is None:
        raise ValueError(f"{str(target)!r} is a transformers folder, which needs the config of the model")
    if dtype not in (None, torch.float32):
        raise ValueError(f"{str(target)!r} is a transformers folder, which holds float32, not {dtype}")
    datasets = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    metadata = MetadataCatalog.get(datasets[0]) if datasets else None
    return lambda tensors: write_transformers(path, cfg, tensors, metadata)
