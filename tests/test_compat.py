"""What `mask2former.compat` does to the process, and when it keeps its hands off."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from mask2former import compat

OLD_SOURCES = {
    "layers/deform_conv.py": "import torch\n\nfrom detectron2 import _C\n",
    "data/transforms/transform.py": "def __init__(self, interp=Image.LINEAR): ...\n",
    "evaluation/sem_seg_evaluation.py": "acc = np.full(num_classes, np.nan, dtype=np.float)\n",
}
CURRENT_SOURCES = {
    "layers/deform_conv.py": "try:\n    from detectron2 import _C\nexcept ImportError:\n    _C = None\n",
    "data/transforms/transform.py": "def __init__(self, interp=Image.BILINEAR): ...\n",
    "evaluation/sem_seg_evaluation.py": "acc = np.full(num_classes, np.nan, dtype=float)\n",
}


@pytest.fixture
def bare_stack(monkeypatch):
    """A process in which nothing has been adjusted yet; the real one is restored afterwards."""
    monkeypatch.delitem(sys.modules, "detectron2._C", raising=False)
    monkeypatch.delattr(PIL.Image, "LINEAR", raising=False)
    for name in ("bool", "int", "float", "str"):
        if name in vars(np):
            monkeypatch.delattr(np, name)


def write_detectron2(root: Path, sources: dict[str, str]) -> Path:
    for file_name, text in sources.items():
        path = root / file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.mark.usefixtures("bare_stack")
def test_an_old_detectron2_gets_all_it_needs(tmp_path):
    done = compat.apply_adjustments(write_detectron2(tmp_path, OLD_SOURCES))
    assert done == ["compiled part", "PIL.Image.LINEAR", "NumPy aliases"]
    assert PIL.Image.LINEAR == PIL.Image.Resampling.BILINEAR
    assert (np.bool, np.int, np.float, np.str) == (bool, int, float, str)


@pytest.mark.usefixtures("bare_stack")
def test_a_current_detectron2_changes_nothing(tmp_path):
    assert compat.apply_adjustments(write_detectron2(tmp_path, CURRENT_SOURCES)) == []
    assert "detectron2._C" not in sys.modules
    assert not hasattr(PIL.Image, "LINEAR")
    assert "int" not in vars(np) and "float" not in vars(np)


@pytest.mark.usefixtures("bare_stack")
def test_a_second_call_finds_nothing_left_to_do(tmp_path):
    root = write_detectron2(tmp_path, OLD_SOURCES)
    compat.apply_adjustments(root)
    assert compat.apply_adjustments(root) == []


@pytest.mark.usefixtures("bare_stack")
def test_a_compiled_extension_is_never_replaced(tmp_path):
    root = write_detectron2(tmp_path, OLD_SOURCES)
    (root / "_C.cpython-312-x86_64-linux-gnu.so").touch()
    assert "compiled part" not in compat.apply_adjustments(root)
    assert "detectron2._C" not in sys.modules


@pytest.mark.usefixtures("bare_stack")
def test_using_the_missing_compiled_part_names_the_function_and_the_cure(tmp_path):
    compat.apply_adjustments(write_detectron2(tmp_path, OLD_SOURCES))
    compiled_part = sys.modules["detectron2._C"]
    with pytest.raises(AttributeError, match=r"_C\.deform_conv_forward is missing.*DETECTRON2=<requirement>"):
        compiled_part.deform_conv_forward()


@pytest.mark.usefixtures("bare_stack")
def test_the_environment_report_says_that_nothing_is_compiled(tmp_path):
    compat.apply_adjustments(write_detectron2(tmp_path, OLD_SOURCES))
    compiled_part = sys.modules["detectron2._C"]
    assert "not compiled" in compiled_part.get_compiler_version()
    assert "not compiled" in compiled_part.get_cuda_version()
    assert compiled_part.has_cuda() is False


def test_detectron2_imports_after_the_package_quietly_and_without_cuda():
    program = (
        "import mask2former, torch, detectron2.engine, detectron2.evaluation, detectron2.modeling\n"
        "import detectron2.projects.deeplab, detectron2.projects.point_rend\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    root = Path(__file__).parent.parent
    finished = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    assert "Warning" not in finished.stderr
