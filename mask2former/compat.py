"""The few adjustments that let an old Detectron2 run on a current Python stack; none of them when it needs none.

Imported before anything of Detectron2 (`mask2former/__init__.py` sees to it). What is needed is read from the installed
source text, not from the version: upstream's main branch still calls itself 0.6 like the release that needs help, and a
fork may have cured one point and not another. Nothing of Detectron2, and no CUDA, is touched to find out.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
import PIL.Image

__all__ = ["apply_adjustments"]

_COMPILED = "detectron2._C"
_NOT_COMPILED = "not compiled: this Detectron2 has only its Python part"


class _MissingCompiledPart(ModuleType):
    """Stands in for Detectron2's C++ extension: importing it is fine, using it says what is missing."""

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # introspection (inspect, doctest, pickle) probes every module for these
            raise AttributeError(name)
        raise AttributeError(
            f"{_COMPILED}.{name} is missing, because the installed Detectron2 has only its Python part. Mask2Former "
            "does not need it; deformable convolution, rotated boxes and the fast COCO evaluation do (instead of the "
            "last, use COCOEvaluator(..., use_fast_impl=False)). To have them, install Detectron2 from its sources: "
            "make setup DETECTRON2=<requirement>."
        )


def apply_adjustments(detectron2_root: Path) -> list[str]:
    """Make up for what the Detectron2 under `detectron2_root` (its package folder) expects and the stack no longer has.

    Returns:
        What was done, one short name each, in order; empty for a Detectron2 that needs nothing.
    """
    done = []
    deform_conv = detectron2_root / "layers" / "deform_conv.py"
    transform = detectron2_root / "data" / "transforms" / "transform.py"
    semantic_evaluation = detectron2_root / "evaluation" / "sem_seg_evaluation.py"
    imports_compiled_part = _contains(deform_conv, r"^from detectron2 import _C")
    if imports_compiled_part and not _is_compiled(detectron2_root) and _stand_in_for_compiled_part():
        done.append("compiled part")
    if _contains(transform, r"\bImage\.LINEAR\b") and _restore_pil_linear():
        done.append("PIL.Image.LINEAR")
    if _contains(semantic_evaluation, r"\bnp\.(int|float)\b") and _restore_numpy_aliases():
        done.append("NumPy aliases")
    return done


def _contains(source: Path, pattern: str) -> bool:
    return source.is_file() and re.search(pattern, source.read_text(encoding="utf-8"), re.MULTILINE) is not None


def _is_compiled(detectron2_root: Path) -> bool:
    # Not find_spec("detectron2._C"): that would import the package first.
    return any(path.suffix in (".so", ".pyd") for path in detectron2_root.glob("_C.*"))


def _stand_in_for_compiled_part() -> bool:
    # Up to 0.5, `detectron2.layers` imports the extension unconditionally (at the start of a line: that is what the
    # pattern asks for). Later versions guard the import and take pure Python when it fails: a stand-in would do harm.
    if _COMPILED in sys.modules:
        return False
    stand_in: Any = _MissingCompiledPart(_COMPILED)
    # The report that Detectron2 logs at the start of every run asks an importable extension for these three.
    stand_in.get_compiler_version = lambda: _NOT_COMPILED
    stand_in.get_cuda_version = lambda: _NOT_COMPILED
    stand_in.has_cuda = lambda: False
    sys.modules[_COMPILED] = stand_in
    return True


def _restore_pil_linear() -> bool:
    # Pillow 10 dropped the old name of the bilinear filter; Detectron2 up to 0.6 uses it as a default argument, so that
    # `detectron2.data.transforms` fails to import.
    if hasattr(PIL.Image, "LINEAR"):
        return False
    setattr(PIL.Image, "LINEAR", PIL.Image.Resampling.BILINEAR)  # noqa: B010 - Pillow's types rightly lack the name
    return True


def _restore_numpy_aliases() -> bool:
    # NumPy 1.24 dropped its aliases of Python's types; Detectron2 up to 0.6 uses these four: semantic evaluator, bit
    # masks, class histogram, Pascal reader. A NumPy that has one keeps its own (2.0 brought `bool` back).
    aliases = {"bool": bool, "int": int, "float": float, "str": str}
    missing = {name: python_type for name, python_type in aliases.items() if name not in vars(np)}
    for name, python_type in missing.items():
        setattr(np, name, python_type)
    return bool(missing)


def _detectron2_root() -> Path:
    spec = importlib.util.find_spec("detectron2")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("Detectron2 is not installed here: run `make setup`, or install it from its sources.")
    return Path(spec.submodule_search_locations[0])


def _hush_torchscript_notice() -> None:
    # While they are imported, Detectron2 and fvcore (their newest versions too) compile a handful of functions that we
    # never call with torch.jit.script, and torch complains about each. The warning gives torch's own file as its place,
    # so its message is all there is to choose by.
    warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning, r"torch\.jit\._script")


apply_adjustments(_detectron2_root())
_hush_torchscript_notice()
