"""Package metadata. Nothing heavy is imported here, so that metadata can be read before anything is installed.

Exact versions are in requirements.txt and requirements-extras.txt, which `make setup` installs; the bounds below are
what the code is written for.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

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
    zip_safe=False,
)
