"""Build the virtual environment from exact versions: `make setup` calls this with a bare Python >= 3.10.

Done again it takes a moment. What a user put into the environment beforehand stays: a Detectron2 (upstream included)
and a torch with its torchvision, because compiled code of the one fits only that version of the other.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UV = "uv==0.13.8"
# The one Detectron2 on the package index: the Python files of upstream's v0.5 without its C++ sources.
DETECTRON2 = "detectron2-cdo==0.5"
DETECTRON2_NAMES = ("detectron2", "detectron2-cdo")
DEFAULT_EXTRAS = "dev,demo,hf"
PINS = ("requirements.txt", "requirements-extras.txt")
# What is compiled where there is a compiler, see setup.py, and the environment variables that change the outcome.
COMPILED = "mask2former/modeling/pixel_decoder/ops/src"
BUILD_VARIABLES = ("M2F_BUILD_OPS", "CXX", "CC", "CXXFLAGS", "CFLAGS", "CPPFLAGS", "LDFLAGS")
BUILD_VARIABLES += ("CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST")
# A version of torch chooses these (2.11, for one, forbids the newest setuptools): they leave the list of pins when the
# torch in the environment is kept.
TORCH_FAMILY = re.compile(r"^(torch|torchvision|triton|nvidia-[\w-]+|cuda-[\w-]+|setuptools)==")
OLDEST_TORCH = (2, 11)

# The sources of detectron2-cdo lack the C++ files that its build would compile: skip that step, for this package only.
PYTHON_PART_ONLY = (
    "--config-settings-package=detectron2-cdo:--global-option=build_py",
    "--config-settings-package=detectron2-cdo:--build-option=--skip-build",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="environment to create or complete")
    parser.add_argument("--extras", help=f"extras of setup.py; left out: as last time, at first {DEFAULT_EXTRAS}")
    parser.add_argument("--detectron2", help="requirement that replaces the installed Detectron2")
    options = parser.parse_args()
    if sys.version_info < (3, 10):  # noqa: UP036 - any Python may run this file, that is the point of asking
        raise SystemExit(f"Python {sys.version.split()[0]} is too old: say `make setup PYTHON=<3.10 or newer>`.")
    os.chdir(ROOT)
    environment = Environment(options.venv.absolute())
    environment.create()
    last = environment.record()
    extras = last.get("extras", DEFAULT_EXTRAS) if options.extras is None else options.extras
    wanted = fingerprint(extras, environment.version_of("torch"))
    has_detectron2 = options.detectron2 in (None, last.get("detectron2")) and environment.version_of(*DETECTRON2_NAMES)
    if last.get("fingerprint") == wanted and has_detectron2:
        print(f"{options.venv} is up to date.")
        return
    keeps_torch = environment.has_own_torch()
    environment.install_pins(extras, keep_torch=keeps_torch)
    environment.install_detectron2(options.detectron2)
    environment.check()
    environment.write_record(
        {
            "fingerprint": fingerprint(extras, environment.version_of("torch")),
            "extras": extras,
            "detectron2": options.detectron2 or last.get("detectron2", ""),
            "torch": "" if keeps_torch else environment.version_of("torch"),
        }
    )
    print(f"{options.venv} is ready.")


def fingerprint(extras: str, torch: str) -> str:
    """Changes with what `make setup` would install or compile, and when the repository moves (it is editable).

    Compiled code depends on the torch that is installed and on the compiler: one that came since is a reason to build.
    """
    compiled = sorted(path for path in (ROOT / COMPILED).iterdir() if path.is_file())
    sources = [Path(__file__), ROOT / "setup.py", *(ROOT / name for name in PINS), *compiled]
    build = [
        *(shutil.which(name) or "" for name in ("c++", "nvcc")),
        *(os.environ.get(name, "") for name in BUILD_VARIABLES),
    ]
    words = "\0".join([extras, str(ROOT), torch, *build])
    content = b"\0".join(source.read_bytes() for source in sources) + b"\0" + words.encode()
    return hashlib.sha256(content).hexdigest()


class Environment:
    """One virtual environment and what is done to it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.python = root / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        self.record_file = root / "mask2former-setup.json"

    def create(self) -> None:
        if self.python.exists():
            return
        print(f"Creating {self.root} with Python {sys.version.split()[0]}", flush=True)
        run(sys.executable, "-m", "venv", str(self.root))

    def record(self) -> dict[str, str]:
        """What the last completed set-up wrote; empty when there was none."""
        return json.loads(self.record_file.read_text()) if self.record_file.is_file() else {}

    def write_record(self, record: dict[str, str]) -> None:
        self.record_file.write_text(json.dumps(record, indent=1) + "\n")

    def version_of(self, *names: str) -> str:
        """Version of the first of these distributions that is installed, or "", read without importing any."""
        code = (
            "import importlib.metadata as metadata, sys\n"
            "found = {d.metadata['Name'].lower().replace('_', '-'): d.version for d in metadata.distributions()}\n"
            "print(next((found[name] for name in sys.argv[1:] if name in found), ''))"
        )
        answer = subprocess.run([str(self.python), "-c", code, *names], check=True, capture_output=True, text=True)
        return answer.stdout.strip()

    def has_own_torch(self) -> bool:
        """Whether the user, and not an earlier set-up, put in a torch that we support."""
        torch, torchvision = self.version_of("torch"), self.version_of("torchvision")
        pinned = re.findall(r"^torch==(\S+)", (ROOT / PINS[0]).read_text(), re.MULTILINE)
        if not torch or not torchvision or torch in (*pinned, self.record().get("torch")):
            return False
        if tuple(int(part) for part in torch.split(".")[:2]) < OLDEST_TORCH:
            raise SystemExit(
                f"{self.root} has torch {torch}; {'.'.join(map(str, OLDEST_TORCH))} or newer is needed. Upgrade it, or "
                "choose another environment with `make setup VENV=<folder>`."
            )
        return True

    def install_pins(self, extras: str, *, keep_torch: bool) -> None:
        """Everything of the pins that the chosen extras ask for, and this package itself, editable."""
        if self.version_of("uv") != UV.split("==")[1]:
            run(str(self.python), "-m", "pip", "install", "--quiet", UV)
        kept = [f"{name}=={self.version_of(name)}" for name in ("torch", "torchvision") if keep_torch]
        if kept:
            print(f"Keeping {' and '.join(kept)} in {self.root}", flush=True)
            self.uv("install", *kept, "setuptools", "wheel")
        with tempfile.TemporaryDirectory() as folder:
            pins = [Path(folder) / name for name in PINS]
            for name, pin in zip(PINS, pins, strict=True):
                lines = (ROOT / name).read_text().splitlines(keepends=True)
                pin.write_text("".join(line for line in lines if not (keep_torch and TORCH_FAMILY.match(line))))
            # The list is complete, so --no-deps leaves nothing out; without it panopticapi-lite would forbid NumPy 2.
            self.uv("install", "--no-deps", "--requirements", str(pins[0]))
            package = f".[{extras}]" if extras else "."
            constraints = [f"--constraints={pin}" for pin in pins]
            # Always built anew: uv would not notice that a C++ file changed.
            anew = ("--no-build-isolation", "--reinstall-package", "mask2former")
            self.uv("install", *anew, *constraints, "--editable", package, *kept)

    def install_detectron2(self, requirement: str | None) -> None:
        """`requirement` if one is given; otherwise ours, unless the environment already has one."""
        present = self.version_of(*DETECTRON2_NAMES)
        if present and not requirement:
            print(f"Keeping Detectron2 {present} that is already in {self.root}", flush=True)
            return
        # Its build imports torch, hence no isolation; its metadata asks for old tools that running it does not need.
        arguments = ("--no-build-isolation", "--no-deps", *PYTHON_PART_ONLY, requirement or DETECTRON2)
        if present:  # Both distributions own the same folder. The old one goes once the new one is known to be there.
            self.uv("install", "--dry-run", *arguments)
            self.uv("uninstall", *DETECTRON2_NAMES)
        self.uv("install", *arguments)

    def check(self) -> None:
        """Import what everything rests on, so that a broken set-up fails here."""
        code = (
            "import torchvision, mask2former, detectron2.modeling, detectron2.evaluation\n"
            "from mask2former.modeling.pixel_decoder.ops import available_backends\n"
            "print('Deformable attention can run through:', ', '.join(available_backends()))"
        )
        run(str(self.python), "-c", code)

    def uv(self, command: str, *arguments: str) -> None:
        index = self.pip_index()
        settings = {"UV_DEFAULT_INDEX": index} if index and "UV_DEFAULT_INDEX" not in os.environ else {}
        run(str(self.python), "-m", "uv", "pip", command, "--python", str(self.python), *arguments, **settings)

    def pip_index(self) -> str | None:
        """The package index that this machine's pip is told to use, if any: uv does not read pip's settings."""
        command = [str(self.python), "-m", "pip", "config", "list"]
        answer = subprocess.run(command, check=True, capture_output=True, text=True)
        found = re.search(r"\.index-url='([^']+)'", answer.stdout)
        return found.group(1) if found else None


def run(*command: str, **settings: str) -> None:
    """Run a command with extra environment variables, its output shown; stop with its exit status when it fails."""
    finished = subprocess.run(command, env={**os.environ, **settings})
    if finished.returncode:
        raise SystemExit(f"Set-up stopped: exit status {finished.returncode} of {' '.join(command)}")


if __name__ == "__main__":
    main()
