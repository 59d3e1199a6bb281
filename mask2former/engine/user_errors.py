"""What a user can cure ends a program with one paragraph; everything else keeps its traceback."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from detectron2.utils import comm

__all__ = ["short_errors"]

_SECONDS_TO_BE_ENDED = 10.0  # on a busy machine an interpreter alone may take seconds to end


@contextlib.contextmanager
def short_errors() -> Iterator[None]:
    """End the program with `<program>: error: <message>` where config, files or packages are not as needed.

    For what comes before the first step: reading, building and loading. The same kinds of error in the middle of a run
    may be anything, and must not pass through here.
    """
    try:
        yield
    except (OSError, ImportError, KeyError, ValueError) as error:
        if comm.get_world_size() > 1 and comm.get_local_rank() > 0:
            # A mistake shows in every process, and the first one that ends takes the others of its machine with it:
            # they need not repeat the message, but what only one of them has met must be said.
            time.sleep(_SECONDS_TO_BE_ENDED)
        # A KeyError would show its message in quotes.
        sys.exit(f"{Path(sys.argv[0]).name}: error: {error.args[0] if isinstance(error, KeyError) else error}")
