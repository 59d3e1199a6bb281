"""Checkpoints of transformers' Mask2Former: a folder with `config.json`, `preprocessor_config.json` and weights.

transformers itself is not needed: the folder holds JSON and safetensors (or what `torch.save` wrote).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone, build_sem_seg_head
from safetensors.torch import save_file
from torch import Tensor, nn

from .transformers_config import config_overrides, preprocessor_config, to_transformers_config
from .transformers_weights import DERIVED_ENDINGS, from_transformers, to_transformers
from .weight_files import read_weight_file

__all__ = ["TransformersCheckpoint", "read_transformers", "write_transformers"]

_CONFIG, _PREPROCESSOR, _WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
#: Where transformers looks for weights, in its order.
_WEIGHT_FILES = (_WEIGHTS, f"{_WEIGHTS}.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

_CLASS_WEIGHTS = "criterion.empty_weight"


@dataclass
class TransformersCheckpoint:
    """What a folder or file of transformers holds.

    Attributes:
        tensors: under our names.
        config: the content of `config.json`; None for a single file.
    """

    tensors: dict[str, Tensor]
    config: dict[str, Any] | None


def read_transformers(path: str | Path) -> TransformersCheckpoint:
    """Read the folder that `Mask2FormerForUniversalSegmentation.save_pretrained` wrote (4.x or 5.x), or its weights.

    Args:
        path: a folder with `config.json` and weights, in one file or several, as .safetensors or .bin; or one such file
            of weights.

    Raises:
        FileNotFoundError: there is no such path, or a file of the folder is missing.
        ValueError: it is another model, or one that we cannot represent.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"transformers checkpoint {str(path)!r} does not exist (MODEL.WEIGHTS)")
    config = _read_json(path / _CONFIG) if path.is_dir() else None
    try:
        if config is not None:
            config_overrides(config)  # before minutes are spent on the weights of a model that we cannot represent
        tensors = from_transformers(_read_weights(path))
    except ValueError as error:
        raise ValueError(f"transformers checkpoint {str(path)!r} cannot be used: {error}") from error
    return TransformersCheckpoint(tensors, config)


def write_transformers(folder: str | Path, cfg: CfgNode, state_dict: Mapping[str, Tensor], metadata: Any) -> None:
    """Write the folder that `Mask2FormerForUniversalSegmentation.from_pretrained` loads, whole or not at all.

    Weights are written as float32 (half precision becomes wider without loss), in one file.

    Args:
        folder: is created with its parents. It may exist if it is empty, or holds nothing but such a checkpoint, which
            is replaced.
        cfg: of the model; see `to_transformers_config`.
        state_dict: of the model. The class weights of the loss (`criterion.empty_weight`) follow from the config.
        metadata: of the data set that the model was trained on, for the names of classes; None invents some.

    Raises:
        ValueError: transformers has no such model, or the weights are not of the model of this config.
        FileExistsError: the folder holds other files.
    """
    folder = Path(folder).resolve()
    _refuse_foreign_files(folder)
    contents = {_CONFIG: to_transformers_config(cfg, metadata), _PREPROCESSOR: preprocessor_config(cfg)}
    _check_fit(cfg, state_dict)
    tensors = {
        name: (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().contiguous()
        for name, tensor in to_transformers({**state_dict, _CLASS_WEIGHTS: _class_weights(cfg)}).items()
    }
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # left by a run that was killed
    unfinished.mkdir(parents=True)
    try:
        for name, content in contents.items():
            (unfinished / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        save_file(tensors, unfinished / _WEIGHTS, metadata={"format": "pt"})
        shutil.copymode(unfinished / _CONFIG, unfinished / _WEIGHTS)  # some safetensors hide files from other users
        _replace(folder, unfinished)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a folder or file under the names that they have there."""
    if path.is_file():
        return read_weight_file(path).tensors
    file = next((path / name for name in _WEIGHT_FILES if (path / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"transformers checkpoint {str(path)!r} has no weights: none of {', '.join(_WEIGHT_FILES)}"
        )
    return _read_shards(file) if file.suffix == ".json" else read_weight_file(file).tensors


def _read_shards(index: Path) -> dict[str, Tensor]:
    file_of = _read_json(index).get("weight_map")
    if not isinstance(file_of, dict) or not all(isinstance(name, str) for name in file_of.values()):
        raise ValueError(f"{index.name} has no weight_map of names to files")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(file_of.values())):
        if Path(name).name != name:
            raise ValueError(f"{index.name} names {name!r}, which is no file of this folder")
        tensors.update(read_weight_file(index.parent / name).tensors)
    if missing := sorted(file_of.keys() - tensors.keys()):
        raise ValueError(f"{file_of[missing[0]]} lacks {missing[0]!r}, which {index.name} says it has")
    return tensors


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"transformers checkpoint {str(path.parent)!r} has no {path.name}")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} holds no JSON object")
    return content


def _class_weights(cfg: CfgNode) -> Tensor:
    weights = torch.ones(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES + 1)
    weights[-1] = cfg.MODEL.MASK_FORMER.NO_OBJECT_WEIGHT
    return weights


def _check_fit(cfg: CfgNode, state_dict: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless the tensors are those of the model of this config."""
    with torch.device("meta"):
        backbone = build_backbone(cfg)
        model = nn.ModuleDict({"backbone": backbone, "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape())})
    wanted, given = (
        {
            name: tuple(tensor.shape)
            for name, tensor in tensors.items()
            if name != _CLASS_WEIGHTS and not name.endswith(DERIVED_ENDINGS)
        }
        for tensors in (model.state_dict(), state_dict)
    )
    for name in (*wanted, *given):
        if (ours := wanted.get(name, "no tensor")) != (theirs := given.get(name, "missing")):
            raise ValueError(
                f"the weights are not of the model of this config, which has {ours} under {name!r}: it is {theirs}"
            )


def _refuse_foreign_files(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"{str(folder)!r} is a file: a transformers checkpoint is a folder")
    ours = {_CONFIG, _PREPROCESSOR, _WEIGHTS}
    if foreign := sorted(entry.name for entry in folder.iterdir() if entry.name not in ours):
        raise FileExistsError(
            f"{str(folder)!r} is not replaced, because it holds {foreign[0]!r}, which is no part of the checkpoint: "
            "choose an empty folder"
        )


def _replace(folder: Path, finished: Path) -> None:
    """Put a finished folder in the place of `folder`, which may exist."""
    if not folder.exists():
        os.rename(finished, folder)
        return
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    os.rename(folder, old)
    os.rename(finished, folder)
    shutil.rmtree(old)
