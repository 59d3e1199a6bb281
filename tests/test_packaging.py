"""What the package files promise each other: pins cover the needs, every folder is a package, no assert is mute."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mask2former

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "mask2former").rglob("*.py"))


def distribution_name(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement).group(0).lower().replace("_", "-")


@pytest.fixture(scope="module")
def setup_arguments(tmp_path_factory):
    """The keyword arguments that setup.py passes to setuptools."""
    program = (
        "import json, runpy, setuptools, sys\n"
        "setuptools.setup = lambda **arguments: print(json.dumps(arguments, default=str))\n"
        "runpy.run_path('setup.py')\n"
        "assert 'torch' not in sys.modules\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    return ast.literal_eval(finished.stdout.replace("false", "False").replace("true", "True"))


def test_every_need_of_setup_py_is_pinned(setup_arguments):
    pinned = [
        distribution_name(line)
        for name in ("requirements.txt", "requirements-extras.txt")
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines()
        if "==" in line
    ]
    extras = [requirement for needs in setup_arguments["extras_require"].values() for requirement in needs]
    needs = {distribution_name(requirement) for requirement in setup_arguments["install_requires"] + extras}
    assert needs <= set(pinned)


def test_no_pin_names_an_index_or_a_file():
    for name in ("requirements.txt", "requirements-extras.txt", "pyproject.toml", "Makefile", "setup.py"):
        assert not re.search(r"index-url|find-links|file://", (ROOT / name).read_text(encoding="utf-8")), name


def test_the_version_is_stated_once(setup_arguments):
    assert setup_arguments["version"] == mask2former.__version__


def test_every_folder_with_modules_is_a_package(setup_arguments):
    folders = {".".join(module.parent.relative_to(ROOT).parts) for module in MODULES}
    assert folders <= set(setup_arguments["packages"])


def test_every_file_beside_the_modules_is_shipped(setup_arguments):
    built = {".py", ".pyc", ".so"}
    files = [path for path in (ROOT / "mask2former").rglob("*") if path.is_file() and path.suffix not in built]
    patterns = setup_arguments["package_data"]["mask2former"]
    missing = [path for path in files if not any(path.match(pattern) for pattern in patterns)]
    assert files and missing == []


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(ROOT)))
def test_every_assertion_of_the_package_says_what_broke(module):
    tree = ast.parse(module.read_text(encoding="utf-8"))
    mute = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert) and node.msg is None]
    assert not mute, f"assert without a message in {module.relative_to(ROOT)}, lines {mute}"
