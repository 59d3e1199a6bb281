"""Cityscapes: semantic and panoptic label pictures, drawn by the data set's own scripts (cityscapesscripts).

    cityscapes/gtFine/{train,val,test}/*/*_gtFine_polygons.json
    cityscapes/gtFine/{train,val,test}/*/*_gtFine_instanceIds.png

Those scripts work through a whole data set in one process; here they are given one picture at a time. Instances need
no preparation.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mask2former.data.preparation.common import require_inputs
from mask2former.data.preparation.jobs import FileJob, Outcome, make_files, total
from mask2former.data.preparation.records import Record, make_files_and_json
from mask2former.files import write_atomically

try:
    from cityscapesscripts.helpers.annotation import Annotation
    from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic
    from cityscapesscripts.preparation.json2labelImg import createLabelImage
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("Cityscapes needs cityscapesscripts: pip install 'mask2former[data]'") from error

#: The labels of the test split are not public: its files say "out of roi", and are prepared because loaders need them.
SPLITS = ("train", "val", "test")
_POLYGONS = "_gtFine_polygons.json"
_INSTANCES = "_gtFine_instanceIds.png"
_TREE = """  {folder}/{{train,val,test}}/{{city}}/*_gtFine_polygons.json
  {folder}/{{train,val,test}}/{{city}}/*_gtFine_instanceIds.png"""
_ORIGIN = "gtFine_trainvaltest.zip of Cityscapes"


@dataclass(frozen=True)
class _PanopticJob(FileJob):
    split: str

    @property
    def key(self) -> str:
        return self.source.name.removesuffix(_INSTANCES)


def prepare_cityscapes(root: Path, *, splits: tuple[str, ...] = SPLITS, num_workers: int | None = None) -> Outcome:
    """Writes gtFine/{split}/{city}/*_gtFine_labelTrainIds.png and gtFine/cityscapes_panoptic_{split}{/*.png,.json}.

    Panoptic categories are the ids of Cityscapes' label table (7..33), as Detectron2 expects, not train ids.
    """
    folder = root / "cityscapes" / "gtFine"
    require_inputs((folder / split for split in splits), tree=_TREE.format(folder=folder), origin=_ORIGIN)
    outcomes = []
    for split in splits:
        labels = [
            FileJob(source, source.with_name(source.name.replace(_POLYGONS, "_gtFine_labelTrainIds.png")))
            for source in _list(folder / split, _POLYGONS)
        ]
        target = folder / f"cityscapes_panoptic_{split}"
        panoptic = [
            _PanopticJob(source, target / source.name.replace(_INSTANCES, "_gtFine_panoptic.png"), split)
            for source in _list(folder / split, _INSTANCES)
        ]
        json_path = target.with_name(f"{target.name}.json")
        outcomes += [
            make_files(_draw_train_ids, labels, description=f"labelTrainIds of {split}", num_workers=num_workers),
            make_files_and_json(_draw_panoptic, panoptic, json_path, _assemble, num_workers=num_workers),
        ]
    return total(outcomes)


def _list(folder: Path, suffix: str) -> list[Path]:
    found = sorted(folder.glob(f"*/*{suffix}"))
    if not found:
        raise FileNotFoundError(f"{folder} holds no {{city}}/*{suffix}; unpack {_ORIGIN} there")
    return found


def _draw_train_ids(job: FileJob) -> None:
    with _official_script(job.source):
        annotation = Annotation()
        annotation.fromJsonFile(str(job.source))
        picture = createLabelImage(annotation, "trainIds")
    write_atomically(job.target, lambda file: picture.save(file, format="PNG"), sync=False)


def _draw_panoptic(job: _PanopticJob) -> Record:
    """Writes the panoptic picture; returns its entry, its annotation and the categories."""
    # The script looks for its input in folders: it gets folders that hold one picture.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        city = folder / job.split / job.source.parent.name
        city.mkdir(parents=True)
        os.symlink(job.source.resolve(), city / job.source.name)
        with _official_script(job.source):
            convert2panoptic(cityscapesPath=name, outputFolder=name, setNames=[job.split])
        output = folder / f"cityscapes_panoptic_{job.split}"
        content: dict[str, Any] = json.loads(output.with_suffix(".json").read_bytes())
        picture = (output / job.target.name).read_bytes()
    write_atomically(job.target, lambda file: file.write(picture), sync=False)
    (image,), (annotation,) = content["images"], content["annotations"]
    return {"image": image, "annotation": annotation, "categories": content["categories"]}


@contextlib.contextmanager
def _official_script(source: Path) -> Iterator[None]:
    """Silences a script, and makes an error of its habit to print what is wrong and end the program."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            yield
    except SystemExit as error:
        raise ValueError(f"{source}: {said.getvalue().strip().splitlines()[0]}") from error


def _assemble(records: list[Record]) -> dict[str, Any]:
    return {
        "images": [record["image"] for record in records],
        "annotations": [record["annotation"] for record in records],
        "categories": records[0]["categories"],
    }
