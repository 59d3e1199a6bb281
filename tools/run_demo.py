#!/usr/bin/env python3
"""The whole project in a few minutes (`make demo`): data, evaluation, pictures, training.

1. composes the digit-disc scenes, 2. evaluates the shipped checkpoint on validation scenes that it never saw, 3. writes
image | truth | prediction strips, 4. fine-tunes for two minutes, 5. says where everything lies. Uses a GPU if there is
one. Every run gets its own new folder.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from tqdm import tqdm

from mask2former.data.datasets import datasets_root
from mask2former.data.datasets.digits_writer import DigitsSettings, prepare_digits
from mask2former.deploy.predictor import Predictor
from mask2former.deploy.strips import evenly_spaced, write_strips
from mask2former.engine import Trainer, config_for_run, evaluate

ROOT = Path(__file__).resolve().parents[1]
#: What step 2 and the comparison after step 4 show: (title, task, metric).
METRICS = (
    ("PQ", "panoptic_seg", "PQ"),
    ("PQ things", "panoptic_seg", "PQ_th"),
    ("PQ stuff", "panoptic_seg", "PQ_st"),
    ("mask AP", "segm", "AP"),
    ("mIoU", "sem_seg", "mIoU"),
)
CALIBRATION_STEPS = 12

Results = dict[str, dict[str, float]]


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    started = time.perf_counter()
    folder = new_folder(Path(args.output))
    log_to(folder / "log.txt")
    try:
        overrides = ["MODEL.WEIGHTS", args.weights, *args.opts]
        cfg = config_for_run(args.config_file, overrides)
        say_step(1, f"Digit-disc scenes: {args.train} to train, {args.val} to validate")
        prepare(args)
        say_step(2, f"Evaluation of {os.path.relpath(args.weights)} on {cfg.DATASETS.TEST[0]} ({cfg.MODEL.DEVICE})")
        before = evaluation(cfg, folder / "evaluation")
        print(table({"": before}))
        say_step(3, f"{args.strips} strips: image | truth | prediction")
        num_strips = strips(cfg, args.strips, folder / "strips")
        after = None
        if args.seconds > 0:
            say_step(4, f"Fine-tuning for {args.seconds:.0f} seconds, to show training")
            after = fine_tune(cfg, args.seconds, folder / "fine_tuning")
            print(table({"before": before, "after": after}))
    except (OSError, ValueError, KeyError) as error:
        print(f"run_demo.py: error: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        print(f"What was done so far lies in {folder}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nstopped; what was done so far lies in {folder}", file=sys.stderr)
        return 130
    say_step(5, f"Done in {(time.perf_counter() - started) / 60:.1f} minutes. Where everything lies:")
    print(summary(args, folder, num_strips, has_trained=after is not None))
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default=str(ROOT / "configs/digits/panoptic.yaml"), metavar="FILE")
    parser.add_argument("--weights", default=str(ROOT / "weights/digits_panoptic.safetensors"), metavar="FILE")
    parser.add_argument("--output", default="output/demo", metavar="FOLDER", help="each run makes a new folder in it")
    parser.add_argument("--train", type=int, default=2000, metavar="N", help="training scenes (default: %(default)s)")
    parser.add_argument("--val", type=int, default=200, metavar="N", help="validation scenes (default: %(default)s)")
    parser.add_argument("--strips", type=int, default=12, metavar="N", help="scenes to draw (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=120, metavar="S", help="fine-tuning; 0 leaves it out (default: %(default)s)"
    )
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides")
    return parser.parse_args(arguments)


def new_folder(parent: Path) -> Path:
    """parent/run_1, or the next number that is free: nothing of an earlier run is touched."""
    number = 1
    while True:
        folder = parent / f"run_{number}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
        number += 1


def log_to(path: Path) -> None:
    """Everything goes to a file; on the console only what tells of progress."""
    to_file = logging.FileHandler(path)
    to_file.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))
    to_console = logging.StreamHandler(sys.stdout)
    to_console.setFormatter(logging.Formatter("    %(message)s"))
    to_console.addFilter(
        lambda record: (
            record.levelno >= logging.WARNING
            or record.name == "mask2former.engine.writers"
            or record.getMessage().startswith("Inference done")
        )
    )
    for name in ("mask2former", "detectron2", "fvcore"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.handlers = [to_file, to_console]


def say_step(number: int, text: str) -> None:
    print(f"\n[{number}/5] {text}", flush=True)


def prepare(args: argparse.Namespace) -> None:
    def progress(indices: Iterable[int], split: str) -> Iterator[int]:
        return iter(tqdm(indices, desc=f"    {split}", unit="scene", file=sys.stdout, disable=None))

    folder = Path(datasets_root()) / "digits"
    is_new = prepare_digits(folder, DigitsSettings(num_train=args.train, num_val=args.val), progress=progress)
    print(f"    {folder} {'written' if is_new else 'is there already'}")


def evaluation(cfg: CfgNode, folder: Path) -> Results:
    """All three tasks in one pass. The evaluators' own tables go to the log."""
    cfg = changed(cfg, "OUTPUT_DIR", str(folder))
    return quietly(lambda: evaluate(cfg))


def quietly(run: Callable[[], Any]) -> Any:
    """Keeps what libraries print (not what they log) off the console."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        result = run()
    logging.getLogger("mask2former.demo").info(printed.getvalue())
    return result


def strips(cfg: CfgNode, count: int, folder: Path) -> int:
    records = evenly_spaced(cfg.DATASETS.TEST[0], count)
    paths = write_strips(Predictor.from_config(cfg), records, folder)
    return len(list(tqdm(paths, total=len(records), desc="    strips", file=sys.stdout, disable=None)))


def fine_tune(cfg: CfgNode, seconds: float, folder: Path) -> Results:
    """Trains from the given weights, with a schedule as long as the time allows, and evaluates."""
    # A tenth of the learning rate that trained the weights: they shall get better, not be forgotten.
    cfg = changed(cfg, "SOLVER.BASE_LR", cfg.SOLVER.BASE_LR / 10, "SOLVER.WARMUP_ITERS", 0, "TEST.EVAL_PERIOD", 0)
    cfg = changed(cfg, "SOLVER.CHECKPOINT_PERIOD", 10**9)
    with tempfile.TemporaryDirectory() as scratch:
        console = logging.getLogger("mask2former").handlers[1]
        console.setLevel(logging.ERROR)
        trial = trained(changed(cfg, "OUTPUT_DIR", scratch, "DATASETS.TEST", [], "SOLVER.MAX_ITER", CALIBRATION_STEPS))
        console.setLevel(logging.NOTSET)
    seconds_per_step = trial.storage.histories()["time"].median(CALIBRATION_STEPS)
    num_steps = max(CALIBRATION_STEPS, int(seconds / seconds_per_step))
    print(f"    {seconds_per_step:.2f} seconds per step of {cfg.SOLVER.IMS_PER_BATCH} scenes: {num_steps} steps")
    trainer = quietly(lambda: trained(changed(cfg, "OUTPUT_DIR", str(folder), "SOLVER.MAX_ITER", num_steps)))
    results: Results = trainer._last_eval_results
    return results


def trained(cfg: CfgNode) -> Trainer:
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer


def changed(cfg: CfgNode, *overrides: Any) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list(list(overrides))
    cfg.freeze()
    return cfg


def table(columns: dict[str, Results]) -> str:
    lines = ["    " + " " * 10 + "".join(f"{title:>9}" for title in columns)] if len(columns) > 1 else []
    for title, task, metric in METRICS:
        values = [results.get(task, {}).get(metric) for results in columns.values()]
        if None not in values:
            lines.append(f"    {title:<10}" + "".join(f"{value:9.1f}" for value in values))
    return "\n".join(lines)


def summary(args: argparse.Namespace, folder: Path, num_strips: int, *, has_trained: bool) -> str:
    scenes = Path(datasets_root()) / "digits"
    lines = {
        "scenes": f"{scenes} (any size and number: datasets/prepare_digits.py)",
        "strips": f"{folder / 'strips'} ({num_strips} pictures: image | truth | prediction)",
        "figures": str(folder / "evaluation" / "inference" / "metrics.json"),
        "full log": str(folder / "log.txt"),
    }
    weights = args.weights
    if has_trained:
        weights = str(folder / "fine_tuning" / "model_final.pth")
        lines["training"] = (
            f"{folder / 'fine_tuning'} (checkpoint, metrics.json; curves: tensorboard --logdir <folder>)"
        )
    config, pictures = os.path.relpath(args.config_file), scenes / "val"
    commands = [
        f"demo/demo.py --config-file {config} --input {pictures} --output drawings --opts MODEL.WEIGHTS {weights}",
        f"train_net.py --config-file {config} --eval-only MODEL.WEIGHTS {weights}",
        f"train_net.py --config-file {config}",
    ]
    python = os.path.relpath(sys.executable)
    return "\n".join(
        [f"    {title:<9} {text}" for title, text in lines.items()]
        + ["\nNext, for example:"]
        + [f"    {python} {command}" for command in commands]
    )


if __name__ == "__main__":
    sys.exit(main())
