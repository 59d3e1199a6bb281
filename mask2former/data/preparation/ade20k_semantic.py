"""ADE20K semantic labels: annotations/ -> annotations_detectron2/, classes 0..149 and 255 = void."""

from __future__ import annotations

from pathlib import Path

from mask2former.data.preparation.ade20k import SPLITS, ade20k_folder, read_semantic
from mask2former.data.preparation.common import list_files, save_picture
from mask2former.data.preparation.jobs import FileJob, Outcome, make_files


def prepare_ade20k_semantic(
    root: Path, *, splits: tuple[str, ...] = ("train", "val"), num_workers: int | None = None
) -> Outcome:
    """Writes annotations_detectron2/{training,validation}/*.png, every value one less than in annotations/."""
    folder = ade20k_folder(root, ("annotations",), splits)
    jobs = [
        FileJob(source, folder / "annotations_detectron2" / SPLITS[split] / source.name)
        for split in splits
        for source in list_files(folder / "annotations" / SPLITS[split], ".png")
    ]
    return make_files(_shift_labels, jobs, description="ADE20K semantic", num_workers=num_workers)


def _shift_labels(job: FileJob) -> None:
    save_picture(job.target, read_semantic(job.source))
