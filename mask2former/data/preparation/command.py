"""What the command lines of all preparations have in common."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from mask2former.data.datasets import datasets_root


def preparation_parser(description: str, *, splits: Sequence[str] = ()) -> argparse.ArgumentParser:
    """A parser with --root and --num-workers, and with --splits where there is a choice of them."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog="What exists already is kept: an interrupted run is continued by the same command. Delete files to have "
        "them made anew.",
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path(datasets_root()),
        help="folder of all data sets (default: the environment variable DETECTRON2_DATASETS, else ./datasets)",
    )
    parser.add_argument("--num-workers", type=int, help="number of processes (default: one per core)")
    if splits:
        parser.add_argument(
            "--splits", nargs="+", choices=splits, default=list(splits), help="which to prepare (default: all)"
        )
    return parser


@contextlib.contextmanager
def short_errors() -> Iterator[None]:
    """Ends the program with one sentence for everything that the user can cure, and after Ctrl-C."""
    program = Path(sys.argv[0]).stem
    try:
        yield
    except (OSError, ValueError) as error:
        sys.exit(f"{program}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{program}: interrupted; finished files stay, the same command continues")
