"""Every key that we declare is read by some code; those that wait for their reader are listed."""

import re
from pathlib import Path

from detectron2.config import CfgNode, get_cfg

import mask2former
from mask2former import add_maskformer2_config

PACKAGE = Path(mask2former.__file__).parent


def _keys(node: CfgNode, prefix: str = "") -> set[str]:
    keys: set[str] = set()
    for name, value in node.items():
        keys |= _keys(value, f"{prefix}{name}.") if isinstance(value, CfgNode) else {f"{prefix}{name}"}
    return keys


def _added_keys() -> set[str]:
    cfg = get_cfg()
    before = _keys(cfg)
    add_maskformer2_config(cfg)
    return _keys(cfg) - before


def _read_names() -> set[str]:
    """Every attribute that the package's code reads, configuration aside."""
    sources = [path.read_text() for path in PACKAGE.rglob("*.py") if path.name != "config.py"]
    return {name for source in sources for name in re.findall(r"\.([A-Z][A-Z0-9_]+)\b", _code(source))}


def _code(source: str) -> str:
    """The source without comments and string literals, in which keys are only talked about."""
    source = re.sub(r'"""[\s\S]*?"""', "", source)
    return re.sub(r'#.*|f?"[^"\n]*"', "", source)


def test_every_added_key_is_read() -> None:
    names = _read_names() | {"POLY_LR_POWER", "POLY_LR_CONSTANT_ENDING"}  # read by Detectron2's DeepLab
    unread = {key for key in _added_keys() if key.rsplit(".", 1)[1] not in names}
    assert not unread
