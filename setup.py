"""Package metadata. Nothing heavy is imported here, so that metadata can be read before anything is installed.

The C++ version of deformable attention is optional. M2F_BUILD_OPS=auto (the default) compiles it where a compiler and
torch are at hand and otherwise says why not; 1 fails instead; 0 leaves it out. The build needs the torch that the
package will run with, hence --no-build-isolation, which `make setup` gives.

Exact versions are in requirements.txt and requirements-extras.txt, which `make setup` installs; the bounds below are
what the code is written for.
"""

import os
import re
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CompileError, LinkError

ROOT = Path(__file__).parent
OPS = "mask2former/modeling/pixel_decoder/ops"

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
    "deploy": ["av>=15"],
    # Cityscapes' official metrics and label pictures; the HDF5 label files of COCO-Stuff-10k.
    "data": ["cityscapesscripts>=2.2", "h5py>=3.8"],
    # Any feature extractor of timm as a backbone.
    "timm": ["timm>=1.0.31"],
    # An independent Mask2Former: second opinion in the tests, opponent in the benchmark.
    "hf": ["transformers>=5.0"],
    "dev": [
        "pytest>=8",
        "hypothesis>=6.100",
        "ruff>=0.6",
        "mypy>=1.11",
        "scikit-learn>=1.2",
        "scikit-image>=0.20",
        "av>=15",
        "cityscapesscripts>=2.2",
        "h5py>=3.8",
        "timm>=1.0.31",
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
        built = [Path(self.build_lib) / OPS / "_C.so", *([ROOT / OPS / "_C.so"] if self.inplace else [])]
        for library in built:  # what an earlier build left would no longer fit the sources
            library.unlink(missing_ok=True)
        reason = "M2F_BUILD_OPS=0" if mode == "0" else why_not_compiled() or self.compile()
        if not reason:
            print("The C++ operators were compiled.", file=sys.stderr)
        elif mode == "1":
            raise SystemExit(f"The C++ operators were not compiled, but M2F_BUILD_OPS=1 asks for them: {reason}")
        else:
            print(f"The C++ operators were not compiled, plain PyTorch stands in: {reason}", file=sys.stderr)

    def compile(self) -> str:
        """Build the library; returns why that failed, if so."""
        from torch.utils.cpp_extension import BuildExtension, CppExtension

        # -fopenmp for the compiler only: linked, it could bring a second thread pool beside the one torch loaded.
        threads = [] if sys.platform == "darwin" else ["-fopenmp"]
        flags = ["-O3", "-g0", "-ffp-contract=fast", "-Wno-psabi", *threads]
        (extension,) = self.extensions
        options = {"depends": extension.depends, "extra_compile_args": flags}
        # In place, as this command has already written notes of its own on the extension.
        vars(extension).update(vars(CppExtension(extension.name, extension.sources, **options)))
        # The library holds operators and is no Python module, hence a name without Python's version.
        command = BuildExtension(self.distribution, use_ninja=False, no_python_abi_suffix=True)
        command.__dict__.update({**self.__dict__, "use_ninja": False, "no_python_abi_suffix": True})
        try:
            command.run()
        except (BaseError, CompileError, LinkError) as error:
            return str(error)
        return ""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"


def why_not_compiled() -> str:
    """What the build lacks, "" if nothing."""
    compiler = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    if shutil.which(shlex.split(compiler)[0]) is None:
        return f"there is no C++ compiler ({compiler})"
    try:
        import torch  # noqa: F401
    except ImportError:
        return "there is no torch in the build environment (pass --no-build-isolation)"
    return ""


setup(
    name="mask2former",
    version=version(),
    description="One masked-attention model for panoptic, instance and semantic segmentation of images and video",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["mask2former", "mask2former.*"]),
    package_data={"mask2former": ["**/*.json", "**/*.yaml", "**/*.cpp", "**/*.cu", "**/*.h", "**/*.cuh", "py.typed"]},
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    ext_modules=[
        Extension(f"{OPS.replace('/', '.')}._C", [f"{OPS}/src/ms_deform_attn.cpp"], depends=[f"{OPS}/src/kernels.h"])
    ],
    cmdclass={"build_ext": BuildOperators},
    zip_safe=False,
)
