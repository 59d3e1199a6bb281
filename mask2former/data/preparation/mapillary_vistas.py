"""Mapillary Vistas: checks an unpacked release, and brings the v1.2 labels of release v2.0 to where v1.2 has them.

Release v1.2:

    mapillary_vistas/config.json
    mapillary_vistas/{training,validation}/{images/*.jpg,labels/*.png,panoptic/*.png,panoptic/panoptic_2018.json}

Release v2.0 has the labels of both versions:

    mapillary_vistas/config_v1.2.json  config_v2.0.json
    mapillary_vistas/{training,validation}/images/*.jpg
    mapillary_vistas/{training,validation}/v1.2/{labels/*.png,panoptic/*.png,panoptic/panoptic_2018.json}
    mapillary_vistas/{training,validation}/v2.0/{labels/*.png,panoptic/*.png,panoptic/panoptic_2020.json}

The names mapillary_vistas_{sem_seg,panoptic}_* read the tree of release v1.2, mapillary_vistas_v2_* that of v2.0.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from mask2former.data.datasets.categories import load_categories
from mask2former.data.datasets.mapillary import read_class_file
from mask2former.data.preparation.common import link_or_copy, list_files, require_inputs
from mask2former.data.preparation.jobs import FileJob, Outcome, make_files

VERSIONS = ("v1.2", "v2.0")
SPLITS = {"train": "training", "val": "validation"}
_PANOPTIC_JSON = {"v1.2": "panoptic_2018.json", "v2.0": "panoptic_2020.json"}
_ORIGIN = "release v1.2 or v2.0 of Mapillary Vistas"


class SplitCounts(NamedTuple):
    """What one split holds."""

    split: str
    num_images: int
    num_labels: int
    num_panoptic: int

    def __str__(self) -> str:
        return (
            f"{self.split}: {self.num_images} pictures, {self.num_labels} semantic and {self.num_panoptic} panoptic "
            "label pictures"
        )


class MapillaryReport(NamedTuple):
    """What was found and done."""

    num_classes: int
    splits: list[SplitCounts]
    brought: Outcome  # labels that were brought into the tree of release v1.2


def prepare_mapillary_vistas(
    root: Path, *, version: str = "v1.2", splits: tuple[str, ...] = ("train", "val"), num_workers: int | None = None
) -> MapillaryReport:
    """Makes the labels of `version` ready below mapillary_vistas/ and checks that every picture has its labels.

    Labels of v1.2 inside release v2.0 get second names, which take no space, or are copied where that is impossible.

    Raises:
        FileNotFoundError: a folder, or the labels of a picture, are missing.
        ValueError: the classes of the release are not those of our table.
    """
    if version not in VERSIONS:
        raise ValueError(f"--version {version} is unknown; choose from {', '.join(VERSIONS)}")
    folder = root / "mapillary_vistas"
    is_nested = version == "v2.0"
    require_inputs(
        (folder / SPLITS[split] / "images" for split in splits), tree=_tree(folder, is_nested), origin=_ORIGIN
    )
    num_classes = _check_classes(folder, version)
    brought = Outcome(0, 0)
    if not is_nested:
        jobs = [job for split in splits for job in _nested_labels(folder / SPLITS[split])]
        brought = make_files(_bring, jobs, description="labels of v1.2", num_workers=num_workers)
    return MapillaryReport(num_classes, [_count(folder, split, version) for split in splits], brought)


def _tree(folder: Path, is_nested: bool) -> str:
    labels, config, year = ("v2.0/", "config_v2.0.json", 2020) if is_nested else ("", "config.json", 2018)
    parts = ["images/*.jpg", *(f"{labels}{path}" for path in ("labels/*.png", "panoptic/*.png"))]
    parts.append(f"{labels}panoptic/panoptic_{year}.json")
    return "\n".join([f"  {folder}/{config}", *(f"  {folder}/{{training,validation}}/{part}" for part in parts)])


def _check_classes(folder: Path, version: str) -> int:
    """Reads the release's own list of classes and compares that of v1.2 with our table; returns their number."""
    names = ("config_v1.2.json", "config.json") if version == "v1.2" else ("config_v2.0.json",)
    path = next((folder / name for name in names if (folder / name).exists()), folder / names[-1])
    require_inputs([path], tree=_tree(folder, version == "v2.0"), origin=_ORIGIN)
    found, _ = read_class_file(str(path))
    if version == "v2.0":
        return len(found)
    expected = load_categories("mapillary_65")
    if len(found) != len(expected):
        raise ValueError(
            f"{path} lists {len(found)} classes, v1.2 has {len(expected)} and the unlabeled one at the end"
        )
    for theirs, ours in zip(found, expected, strict=True):
        if theirs != ours:
            raise ValueError(
                f"{path}: class {ours.id} is {theirs}, in v1.2 it is {ours}; labels would be learned under wrong names"
            )
    return len(expected)


def _nested_labels(folder: Path) -> list[FileJob]:
    """What release v2.0 keeps in {folder}/v1.2 and release v1.2 in {folder}."""
    nested = folder / "v1.2"
    if not nested.is_dir():
        return []
    pictures = [*list_files(nested / "labels", ".png"), *list_files(nested / "panoptic", ".png")]
    sources = [*pictures, nested / "panoptic" / _PANOPTIC_JSON["v1.2"]]  # what says which pictures there are comes last
    return [FileJob(source, folder / source.relative_to(nested)) for source in sources]


def _bring(job: FileJob) -> None:
    link_or_copy(job.source, job.target)


def _count(folder: Path, split: str, version: str) -> SplitCounts:
    """Counts the files of a split; every picture must have both kinds of labels."""
    part = folder / SPLITS[split]
    labels = part / "v2.0" if version == "v2.0" else part
    json_path = labels / "panoptic" / _PANOPTIC_JSON[version]
    needed = [labels / "labels", labels / "panoptic", json_path]
    require_inputs(needed, tree=_tree(folder, version == "v2.0"), origin=_ORIGIN)
    images = list_files(part / "images", ".jpg")
    present = {kind: {path.stem for path in list_files(labels / kind, ".png")} for kind in ("labels", "panoptic")}
    for kind, stems in present.items():
        missing = next((image for image in images if image.stem not in stems), None)
        if missing is not None:
            raise FileNotFoundError(
                f"{labels / kind / missing.stem}.png does not exist, the labels of {missing}: unpack the release again"
            )
    return SplitCounts(split, len(images), len(present["labels"]), len(present["panoptic"]))
