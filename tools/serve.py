#!/usr/bin/env python3
"""Serves a trained model over HTTP, with a page to try it on at http://HOST:PORT/.

    tools/serve.py weights/digits_panoptic.safetensors
    tools/serve.py model_final.pth --config-file configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml
    tools/serve.py exported_folder --host 0.0.0.0 --token-file /run/secrets/token

The model is a folder of tools/export_model.py, or a checkpoint with its config beside it or named. Clients need the
token that --token-file or the environment variable MASK2FORMER_TOKEN holds; without either none is asked for. SIGTERM
and Ctrl-C end the service after the requests that it has accepted. Its log are JSON lines on stdout.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mask2former.deploy import load
from mask2former.deploy.serving import (
    TOKEN_VARIABLE,
    ServiceSettings,
    create_app,
    listen,
    log_to_stdout,
    serve,
    token_from_environment,
)

WRONG_USE = 2
STOPPED_BY_USER = 130


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    log_to_stdout()
    try:
        settings = ServiceSettings(
            max_batch_size=args.max_batch_size,
            max_wait_seconds=args.max_wait / 1000,
            num_workers=args.workers,
            max_pending=args.max_pending,
            timeout_seconds=args.timeout,
            max_upload_bytes=round(args.max_upload * 2**20),
            max_pixels=round(args.max_megapixels * 1e6),
            token=read_token(args.token_file),
        )
        with listen(args.host, args.port) as listener:
            segmenter = load(args.model, config_file=args.config_file, device=args.device, overrides=args.opts)
            serve(create_app(segmenter, settings), listener, shutdown_seconds=2 * args.timeout)
    except (OSError, ValueError, KeyError, ImportError) as error:
        # A KeyError would print its message in quotes.
        print(f"serve.py: error: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        return WRONG_USE
    except KeyboardInterrupt:
        return STOPPED_BY_USER
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    defaults = ServiceSettings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder written by tools/export_model.py, or a checkpoint")
    parser.add_argument("--config-file", metavar="FILE", help="of a checkpoint without a config beside it")
    parser.add_argument("--device", help="cpu or cuda (default: what the model names and the machine has)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0: reachable from other machines (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free (default: %(default)s)")
    parser.add_argument("--token-file", metavar="FILE", help=f"holds the bearer token (default: ${TOKEN_VARIABLE})")
    limits = parser.add_argument_group("limits")

    def add_limit(flag: str, default: float, unit: str, meaning: str) -> None:
        limits.add_argument(
            flag, type=type(default), default=default, metavar=unit, help=f"{meaning} (default: %(default)g)"
        )

    add_limit("--max-batch-size", defaults.max_batch_size, "N", "pictures that go through the model together")
    add_limit("--max-wait", 1000 * defaults.max_wait_seconds, "MS", "how long a batch waits for more pictures")
    add_limit(
        "--workers", defaults.num_workers, "N", "batches computed side by side; on a CPU each by its share of the cores"
    )
    add_limit("--max-pending", defaults.max_pending, "N", "requests under way, others get 429")
    add_limit("--timeout", defaults.timeout_seconds, "SECONDS", "of a request")
    add_limit("--max-upload", defaults.max_upload_bytes / 2**20, "MIB", "size of a picture's file")
    add_limit("--max-megapixels", defaults.max_pixels / 1e6, "MP", "size of a picture")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides of a checkpoint"
    )
    return parser.parse_args(arguments)


def read_token(file: str | None) -> str | None:
    """From the file, else from the environment: on a command line every user of the machine could read it."""
    if file is not None:
        token = Path(file).read_text(encoding="utf-8").strip()
        if not token:
            raise ValueError(f"--token-file {file!r} is empty")
        return token
    return token_from_environment()


if __name__ == "__main__":
    sys.exit(main())
