"""What the operator of a service decides."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

__all__ = ["TOKEN_VARIABLE", "ServiceSettings", "token_from_environment"]

TOKEN_VARIABLE = "MASK2FORMER_TOKEN"


def token_from_environment() -> str | None:
    """The bearer token that `TOKEN_VARIABLE` holds, None where it is missing or empty."""
    return os.environ.get(TOKEN_VARIABLE) or None


@dataclass(frozen=True)
class ServiceSettings:
    """Limits of one service.

    Args:
        max_batch_size: pictures that go through the network together.
        max_wait_seconds: how long a batch that is not full waits for more pictures.
        num_workers: batches that are computed side by side. On a CPU each has its share of the cores: more pictures per
            second, most of all of small ones, which several threads cannot share well, but each takes longer.
        max_pending: requests that are accepted and not yet answered; whoever comes then is told to come back (429).
            It bounds the memory, too: at most that many uploads, pictures and results exist at a time.
        timeout_seconds: from a request's head to the end of its inference.
        max_upload_bytes: size of an encoded picture.
        max_pixels: height times width of a picture.
        token: what requests must bear in `Authorization: Bearer ...`; None: no request needs one.
    """

    max_batch_size: int = 8
    max_wait_seconds: float = 0.005
    num_workers: int = 1
    max_pending: int = 64
    timeout_seconds: float = 30.0
    max_upload_bytes: int = 20 * 2**20
    max_pixels: int = 40_000_000
    token: str | None = field(default=None, repr=False)  # a log must never show it

    def __post_init__(self) -> None:
        positive = ("max_batch_size", "num_workers", "max_pending", "timeout_seconds", "max_upload_bytes", "max_pixels")
        for name in positive:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be larger than 0")
        if self.max_wait_seconds < 0:
            raise ValueError(f"max_wait_seconds={self.max_wait_seconds} must not be negative")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            raise ValueError("the token must be a line of printable ASCII characters")
