"""The CUDA library compiled for the host, so that the arithmetic of its kernels is tested where there is no GPU."""

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from mask2former.modeling.pixel_decoder.ops import backends, cuda_library

HERE = Path(__file__).parent
SOURCES = Path(cuda_library.__file__).parent / "src"
TORCH = Path(torch.__file__).parent
COMPILER = shutil.which("c++")


@functools.cache
def emulated_cuda() -> backends.Backend:
    """The backend "cuda", for tensors of the CPU."""
    shims = HERE / "cuda_on_host"
    with tempfile.TemporaryDirectory() as built:
        library = Path(built) / "cuda_on_host.so"
        folders = (shims, SOURCES, TORCH / "include", TORCH / "include/torch/csrc/api/include")
        includes = [f"-I{folder}" for folder in folders]  # the shims come first and hide files of the same name
        command = [COMPILER, "-std=c++20", "-O1", "-fPIC", "-shared", "-Wno-unknown-pragmas", *includes]
        command += ["-DM2F_DEVICE_OF_KERNELS=at::kCPU", str(shims / "library.cpp"), "-o", str(library)]
        command += [f"-L{TORCH / 'lib'}", "-lc10", "-ltorch_cpu"]
        finished = subprocess.run(command, capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr
        torch.ops.load_library(library)
    functions = [getattr(cuda_library, name) for name in backends._FUNCTIONS]
    return backends.Backend("cuda", frozenset({"cpu"}), backends._GPU_DTYPES, True, *functions)
