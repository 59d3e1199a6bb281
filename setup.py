"""Package metadata. Nothing heavy is imported here, so that metadata can be read before anything is installed.

The compiled versions of deformable attention are optional: C++ for the CPU, CUDA for GPUs. M2F_BUILD_OPS=auto (the
default) compiles what the machine can and otherwise says why not; 1 fails instead; 0 leaves both out. The build needs
the torch that the package will run with, hence --no-build-isolation, which `make setup` gives. CUDA is compiled for the
GPUs of the machine, where there is none for DEFAULT_ARCHITECTURES; TORCH_CUDA_ARCH_LIST names others.

Exact versions are in requirements.txt and requirements-extras.txt, which `make setup` installs; the bounds below are
what the code is written for.
"""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CompileError, LinkError

ROOT = Path(__file__).parent
OPS = "mask2former/modeling/pixel_decoder/ops"
# Code for 8.0 and 9.0 also runs on all of their generations; newer GPUs translate the last one's intermediate code.
DEFAULT_ARCHITECTURES = "7.5;8.0;9.0+PTX"

# Two needs are missing on purpose, because pip alone cannot install them; `make setup` does (its script says how):
# Detectron2 is not on the package index under its own name, and the metadata of panopticapi-lite forbids NumPy 2, its
# code does not.
INSTALL_REQUIRES = [
    "torch>=2.11",
    "torchvision>=0.26",
    "numpy>=1.24",
    "scipy>=1.10",
    "pillow>=10",
    "opencv-python-headless>=4.8",
    "pycocotools>=2.0.7",
    "faster-coco-eval>=1.8",
    "safetensors>=0.4",
    "tensorboard>=2.12",
    "tqdm>=4.64",
    # What Detectron2 imports, whichever version it is.
    "fvcore>=0.1.5.post20221221",
    "iopath>=0.1.9",
    "yacs>=0.1.8",
    "omegaconf>=2.1",
    "hydra-core>=1.1",
    "termcolor>=1.1",
    "tabulate>=0.8",
    "cloudpickle>=2",
    "matplotlib>=3.7",
    "pydot>=1.4",
]

EXTRAS_REQUIRE = {
    # The embedded digit-disc scenes are composed from pictures that these two packages ship; av reads and writes video.
    "demo": ["scikit-learn>=1.2", "scikit-image>=0.20", "av>=15"],
    # Export, quantization and ONNX Runtime; tiles of pictures larger than memory; the service.
    "deploy": [
        "av>=15",
        "onnx>=1.18",
        "onnxruntime>=1.22",
        "onnxscript>=0.5",
        "onnxslim>=0.1.60",
        "rasterio>=1.3.10",
        "fastapi>=0.115",
        "uvicorn>=0.30",
        "python-multipart>=0.0.12",
        "prometheus-client>=0.20",
    ],
    # Data sets on many machines, and tables of results.
    "cluster": ["ray[data,serve]>=2.40", "pyarrow>=15"],
    # Cityscapes' official metrics and label pictures; the HDF5 label files of COCO-Stuff-10k.
    "data": ["cityscapesscripts>=2.2", "h5py>=3.8"],
    # Any feature extractor of timm as a backbone.
    "timm": ["timm>=1.0.31"],
    # An independent Mask2Former: second opinion in the tests, opponent in the benchmark.
    "hf": ["transformers>=5.0"],
    "dev": [
        "pytest>=8",
        "pytest-xdist>=3.6",
        "hypothesis>=6.100",
        "ruff>=0.6",
        "mypy>=1.11",
        "scikit-learn>=1.2",
        "scikit-image>=0.20",
        "av>=15",
        "cityscapesscripts>=2.2",
        "h5py>=3.8",
        "timm>=1.0.31",
        "httpx>=0.27",
        "schemathesis>=4",
    ],
}


def version() -> str:
    text = (ROOT / "mask2former" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    if found is None:
        raise ValueError("mask2former/__init__.py must state __version__")
    return found.group(1)


def long_description() -> str:
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


class BuildOperators(build_ext):
    """Leaves the work to torch's build command, which is imported only when something is built."""

    def run(self) -> None:
        mode = os.environ.get("M2F_BUILD_OPS", "auto")
        if mode not in ("auto", "0", "1"):
            raise SystemExit(f"M2F_BUILD_OPS={mode!r} is unknown; choose from 0, 1, auto")
        missing_cpp = mode != "0" and why_not_cpp()
        missing_cuda = mode != "0" and (missing_cpp or why_not_cuda())
        for extension in self.extensions:
            name = "CUDA" if is_cuda(extension) else "C++"
            self.remove_built(extension)
            missing = "M2F_BUILD_OPS=0" if mode == "0" else missing_cuda if is_cuda(extension) else missing_cpp
            reason = missing or self.compile(extension)
            # Nobody who has neither GPU nor nvcc asks for CUDA.
            is_wanted = not is_cuda(extension) or not missing or has_gpu()
            if not reason:
                print(f"The {name} operators were compiled.", file=sys.stderr)
            elif mode == "1" and is_wanted:
                raise SystemExit(f"The {name} operators were not compiled, but M2F_BUILD_OPS=1 asks for them: {reason}")
            else:
                print(f"The {name} operators were not compiled, others stand in: {reason}", file=sys.stderr)

    def remove_built(self, extension: Extension) -> None:
        """What an earlier build left would no longer fit the sources."""
        library = self.get_ext_filename(extension.name)
        for folder in (Path(self.build_lib), *([ROOT] if self.inplace else [])):
            (folder / library).unlink(missing_ok=True)

    def compile(self, extension: Extension) -> str:
        """Build one library; returns why that failed, if so."""
        from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

        # -fopenmp for the compiler only: linked, it could bring a second thread pool beside the one torch loaded.
        threads = [] if sys.platform == "darwin" else ["-fopenmp"]
        sources = runpy.run_path(str(ROOT / OPS / "sources.py"))["fingerprint"]()
        flags = [
            "-O3",
            "-g0",
            "-ffp-contract=fast",
            "-fno-trapping-math",
            "-Wno-psabi",
            f"-DM2F_SOURCES={sources}",
            *threads,
        ]
        kind, arguments = CppExtension, {"extra_compile_args": flags}
        if is_cuda(extension):
            kind, arguments = CUDAExtension, {"extra_compile_args": {"cxx": flags, "nvcc": ["-O3"]}}
            if not has_gpu():
                os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHITECTURES)
        # In place, as this command has already written notes of its own on the extension.
        vars(extension).update(vars(kind(extension.name, extension.sources, depends=extension.depends, **arguments)))
        # The library holds operators and is no Python module, hence a name without Python's version.
        command = BuildExtension(self.distribution, use_ninja=False, no_python_abi_suffix=True)
        settings = {"use_ninja": False, "no_python_abi_suffix": True, "extensions": [extension]}
        command.__dict__.update({**self.__dict__, **settings})
        try:
            command.run()
        except (BaseError, CompileError, LinkError) as error:
            return str(error)
        return ""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"


def is_cuda(extension: Extension) -> bool:
    return any(source.endswith(".cu") for source in extension.sources)


def has_gpu() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


def why_not_cpp() -> str:
    """What the build lacks, "" if nothing."""
    compiler = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    if shutil.which(shlex.split(compiler)[0]) is None:
        return f"there is no C++ compiler ({compiler})"
    try:
        import torch  # noqa: F401
    except ImportError:
        return "there is no torch in the build environment (pass --no-build-isolation)"
    return ""


def why_not_cuda() -> str:
    """What the build of the CUDA operators lacks beside what the C++ ones need, "" if nothing."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    home = cuda_home()
    if home is None:
        return "there is no nvcc (in CUDA_HOME, on the PATH, or in /usr/local/cuda)"
    answer = subprocess.run([home / "bin" / "nvcc", "--version"], capture_output=True, text=True)
    found = re.search(r"release (\d+)\.", answer.stdout)
    if found is None:
        return f"{home}/bin/nvcc --version says no version: {answer.stdout or answer.stderr}"
    if found.group(1) != torch.version.cuda.split(".")[0]:
        return f"{home}/bin/nvcc is of CUDA {found.group(1)}, torch of CUDA {torch.version.cuda}"
    os.environ["CUDA_HOME"] = str(home)  # torch looks here when its build command is imported
    return ""


def cuda_home() -> Path | None:
    """The folder of the CUDA toolkit. The nvcc on the PATH may be a script elsewhere: nvcc itself knows where it is."""
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = f"{named}/bin/nvcc" if named else shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(nvcc).is_file():
        return None
    answer = subprocess.run([nvcc, "--dryrun", "-c", "nothing.cu"], capture_output=True, text=True)
    found = re.search(r"^#\$ TOP=(.+)$", answer.stderr, re.MULTILINE)
    return Path(found.group(1)).resolve() if found else Path(nvcc).parent.parent


setup(
    name="mask2former",
    version=version(),
    description="One masked-attention model for panoptic, instance and semantic segmentation of images and video",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["mask2former", "mask2former.*"]),
    package_data={
        "mask2former": [
            *(f"**/*.{suffix}" for suffix in ("json", "yaml", "html", "cpp", "cu", "h", "cuh")),
            "py.typed",
        ]
    },
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    ext_modules=[
        Extension(
            f"{OPS.replace('/', '.')}._C",
            [f"{OPS}/src/{name}" for name in ("ms_deform_attn.cpp", "point_losses.cpp")],
            depends=[f"{OPS}/src/{name}" for name in ("arguments.h", "cpu_kernels.h", "point_losses_kernels.h")],
        ),
        Extension(
            f"{OPS.replace('/', '.')}._C_cuda",
            [f"{OPS}/src/ms_deform_attn_cuda.cpp", f"{OPS}/src/cuda_launch.cu"],
            depends=[f"{OPS}/src/{name}" for name in ("arguments.h", "cuda_call.h", "cuda_kernels.cuh")],
        ),
    ],
    cmdclass={"build_ext": BuildOperators},
    zip_safe=False,
)
