"""The CUDA library compiled for the host, so that the arithmetic of its kernels is tested where there is no GPU."""

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from mask2former.modeling.pixel_decoder.ops import backends, cuda_library

SHIMS = Path(__file__).parent / "cuda_on_host"
SOURCES = Path(cuda_library.__file__).parent / "src"
TORCH = Path(torch.__file__).parent
COMPILER = shutil.which("c++")


def emulated_cuda() -> backends.Backend:
    """The backend "cuda", for tensors of the CPU."""
    errors = compile_and_load()
    assert not errors, errors
    functions = [getattr(cuda_library, name) for name in backends._FUNCTIONS]
    return backends.Backend("cuda", frozenset({"cpu"}), backends._GPU_DTYPES, True, *functions)


@functools.cache  # errors, too, so that not every test tries anew
def compile_and_load() -> str:
    # The shims come first and hide files of the same name.
    folders = (SHIMS, SOURCES, TORCH / "include", TORCH / "include/torch/csrc/api/include")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "cuda_on_host.so"
        command = [COMPILER, "-std=c++20", "-O1", "-fPIC", "-shared", "-Wno-unknown-pragmas"]
        command += [f"-I{included}" for included in folders]
        command += ["-DM2F_DEVICE_OF_KERNELS=at::kCPU", str(SHIMS / "library.cpp"), "-o", str(library)]
        command += [f"-L{TORCH / 'lib'}", "-lc10", "-ltorch_cpu"]
        finished = subprocess.run(command, capture_output=True, text=True)
        if finished.returncode:
            return finished.stderr
        torch.ops.load_library(library)
    return ""
