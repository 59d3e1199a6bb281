"""The one table of data sets: which files each registered name stands for, and how its metadata is made."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, Literal, NamedTuple

from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES, COCO_CATEGORIES

from mask2former.data.datasets.categories import Category, load_categories

#: How the files are laid out, and so which function of loaders.py reads them.
Form = Literal[
    "panoptic",
    "instance",
    "semantic",
    "video",
    "coco_as_video",
    "cityscapes_panoptic",
    "cityscapes_instance",
    "cityscapes_semantic",
]
Which = Literal["all", "things", "stuff"]
Paths = dict[str, str | None]


class ClassLists(NamedTuple):
    """Which classes each class entry of the metadata lists; None: there is no such entry."""

    thing_classes: Which | None = None
    thing_ids: Which | None = None  # thing_dataset_id_to_contiguous_id
    stuff_classes: Which | None = None
    stuff_ids: Which | None = None  # stuff_dataset_id_to_contiguous_id


class Split(NamedTuple):
    """One registered name. `paths` (relative to the data sets' root) have the names of Detectron2's metadata keys."""

    name: str
    form: Form
    categories: str | None  # a name that `split_categories` knows; None: in the data set's own `class_file`
    evaluator_type: str
    paths: Paths  # None: the key exists and says that there is no such file
    lists: ClassLists
    ignore_label: int | None = None
    image_suffix: str = ".jpg"  # of pictures whose name no annotation file gives
    label_suffix: str = ".png"  # of semantic label pictures
    preparation: str = ""  # the commands that make the files below {root}; "" where everything is downloaded


@cache
def all_splits() -> tuple[Split, ...]:
    """Every split this package registers.

    Among them are the names of Detectron2 that published configs use: its loaders die of missing or damaged files
    without a word on the cure, and cannot read Cityscapes below a folder with a dot in its name.
    """
    return (
        *_digits(),
        *_coco(),
        *_coco_stuff_10k(),
        *_ade20k(),
        *_cityscapes(),
        *_mapillary_vistas(),
        *_youtube_vis(),
    )


def split_categories(name: str) -> list[Category]:
    """The table that `Split.categories` names, in contiguous order."""
    builtin = {"coco_panoptic": COCO_CATEGORIES, "cityscapes": CITYSCAPES_CATEGORIES}.get(name)
    if builtin is None:
        return load_categories(name)
    return [Category(c["id"], c["name"], bool(c["isthing"]), tuple(c["color"])) for c in builtin]


_INSTANCE = ClassLists(thing_classes="things", thing_ids="things")
_SEMANTIC = ClassLists(stuff_classes="all")
# The semantic evaluator judges all classes, so things are listed as stuff too.
_PANOPTIC = ClassLists(thing_classes="things", thing_ids="things", stuff_classes="all", stuff_ids="all")


def _instance(name: str, categories: str | None, paths: Paths, **settings: Any) -> Split:
    files = {key: paths[key] for key in ("image_root", "json_file")}
    return Split(name, "instance", categories, "coco", files, _INSTANCE, **settings)


def _semantic(name: str, categories: str | None, paths: Paths, **settings: Any) -> Split:
    files: Paths = {key: paths[key] for key in ("image_root", "sem_seg_root", "class_file") if key in paths}
    return Split(name, "semantic", categories, "sem_seg", files, _SEMANTIC, **{"ignore_label": 255, **settings})


def _panoptic(name: str, categories: str | None, kind: str, paths: Paths, **settings: Any) -> Split:
    settings = {"lists": _PANOPTIC, "ignore_label": 255, **settings}
    return Split(name, "panoptic", categories, f"{kind}_panoptic_seg", paths, **settings)


def _video(name: str, categories: str, paths: Paths, **settings: Any) -> Split:
    return Split(name, "video", categories, "ytvis", paths, _INSTANCE, **settings)


def _commands(*scripts: str) -> str:
    return " && ".join(f"python datasets/{script}.py --root {{root}}" for script in scripts)


def _digits() -> Iterator[Split]:
    settings = {"image_suffix": ".png", "preparation": "python datasets/prepare_digits.py --output {root}/digits"}
    for part in ("train", "val"):
        paths: Paths = {
            "image_root": f"digits/{part}",
            "panoptic_root": f"digits/panoptic_{part}",
            "panoptic_json": f"digits/annotations/panoptic_{part}.json",
            "sem_seg_root": f"digits/semantic_{part}",
            "json_file": f"digits/annotations/instances_{part}.json",
        }
        # Panoptic names carry all three forms of labels, so that one pass gives PQ, AP and mIoU.
        yield _panoptic(f"digits_panoptic_{part}", "digits", "coco", paths, **settings)
        yield _instance(f"digits_instance_{part}", "digits", paths, **settings)
        yield _semantic(f"digits_semantic_{part}", "digits", paths, **settings)
        paths = {"image_root": f"digits_video/{part}/JPEGImages", "json_file": f"digits_video/{part}.json"}
        preparation = "python datasets/prepare_digits.py --video --output {root}/digits_video"
        yield _video(f"digits_video_{part}", "digits", paths, preparation=preparation)


def _coco() -> Iterator[Split]:
    for part in ("train", "val"):
        paths: Paths = {
            "image_root": f"coco/{part}2017",
            "panoptic_root": f"coco/panoptic_{part}2017",
            "panoptic_json": f"coco/annotations/panoptic_{part}2017.json",
            "json_file": f"coco/annotations/instances_{part}2017.json",
        }
        with_semantic = {**paths, "sem_seg_root": f"coco/panoptic_semseg_{part}2017"}
        # Without semantic labels, nothing asks for the ids of things as stuff.
        disjoint = _PANOPTIC._replace(stuff_ids="stuff")
        preparation = _commands("prepare_coco_semantic_annos_from_panoptic_annos")
        name = f"coco_2017_{part}"
        yield _instance(name, "coco_panoptic", paths)
        yield _panoptic(f"{name}_panoptic", "coco_panoptic", "coco", paths, lists=disjoint)
        name += "_panoptic_with_sem_seg"
        yield _panoptic(name, "coco_panoptic", "coco", with_semantic, preparation=preparation)
    for part in ("test", "test-dev"):  # labels are with COCO's server; test-dev is a part of test
        paths = {"image_root": "coco/test2017", "json_file": f"coco/annotations/image_info_{part}2017.json"}
        yield _instance(f"coco_2017_{part}", "coco_panoptic", paths)


def _coco_stuff_10k() -> Iterator[Split]:
    for part in ("train", "test"):
        paths: Paths = {
            "image_root": f"coco/coco_stuff_10k/images_detectron2/{part}",
            "sem_seg_root": f"coco/coco_stuff_10k/annotations_detectron2/{part}",
        }
        split = _semantic(f"coco_2017_{part}_stuff_10k_sem_seg", "coco_stuff_171", paths)
        preparation = _commands("prepare_coco_stuff_10k_v1.0_sem_seg")
        yield split._replace(lists=_SEMANTIC._replace(stuff_ids="all"), preparation=preparation)


def _ade20k() -> Iterator[Split]:
    scripts = [f"prepare_ade20k_{form}_seg" for form in ("sem", "ins", "pan")]
    for part, folder in (("train", "training"), ("val", "validation")):
        paths: Paths = {
            "image_root": f"ADEChallengeData2016/images/{folder}",
            "panoptic_root": f"ADEChallengeData2016/ade20k_panoptic_{part}",
            "panoptic_json": f"ADEChallengeData2016/ade20k_panoptic_{part}.json",
            "sem_seg_root": f"ADEChallengeData2016/annotations_detectron2/{folder}",
            "json_file": f"ADEChallengeData2016/ade20k_instance_{part}.json",
        }
        full: Paths = {
            "image_root": f"ADE20K_2021_17_01/images_detectron2/{folder}",
            "sem_seg_root": f"ADE20K_2021_17_01/annotations_detectron2/{folder}",
        }
        name = f"ade20k_sem_seg_{part}"
        yield _semantic(name, "ade20k_150", paths, preparation=_commands(scripts[0]))
        name = f"ade20k_instance_{part}"
        yield _instance(name, "ade20k_instance_100", paths, preparation=_commands(scripts[1]))
        # Things keep their ids among the 150 classes, so their contiguous ids are not 0..99.
        yield _panoptic(f"ade20k_panoptic_{part}", "ade20k_150", "ade20k", paths, preparation=_commands(*scripts))
        # 847 classes do not fit into one byte.
        split = _semantic(f"ade20k_full_sem_seg_{part}", "ade20k_full_847", full, ignore_label=65535)
        yield split._replace(label_suffix=".tif", preparation=_commands("prepare_ade20k_full_sem_seg"))


def _cityscapes() -> Iterator[Split]:
    preparation = _commands("prepare_cityscapes")
    # Names only: what is evaluated are files of the official format, which has its own ids.
    names = ClassLists(thing_classes="things", stuff_classes="all")
    for part in ("train", "val", "test"):
        # Detectron2 calls the folders image_dir and gt_dir here, with a separator at the end, and image_root below.
        paths: Paths = {"image_dir": f"cityscapes/leftImg8bit/{part}/", "gt_dir": f"cityscapes/gtFine/{part}/"}
        name, kind = f"cityscapes_fine_sem_seg_{part}", "cityscapes_sem_seg"
        yield Split(name, "cityscapes_semantic", "cityscapes", kind, paths, names, 255, preparation=preparation)
        name, kind = f"cityscapes_fine_instance_seg_{part}", "cityscapes_instance"
        yield Split(name, "cityscapes_instance", "cityscapes", kind, paths, names)
    for part in ("train", "val"):
        paths = {
            "image_root": f"cityscapes/leftImg8bit/{part}",
            "gt_dir": f"cityscapes/gtFine/{part}",
            "panoptic_root": f"cityscapes/gtFine/cityscapes_panoptic_{part}",
            "panoptic_json": f"cityscapes/gtFine/cityscapes_panoptic_{part}.json",
        }
        lists = ClassLists(thing_classes="all", thing_ids="things", stuff_classes="all", stuff_ids="stuff")
        split = _panoptic(f"cityscapes_fine_panoptic_{part}", "cityscapes", "cityscapes", paths, lists=lists)
        yield split._replace(form="cityscapes_panoptic", preparation=preparation)


def _mapillary_vistas() -> Iterator[Split]:
    lists = _PANOPTIC._replace(thing_classes="all")
    kind = "mapillary_vistas"
    for part, folder in (("train", "training"), ("val", "validation")):
        paths: Paths = {
            "image_root": f"mapillary_vistas/{folder}/images",
            "panoptic_root": f"mapillary_vistas/{folder}/panoptic",
            "panoptic_json": f"mapillary_vistas/{folder}/panoptic/panoptic_2018.json",
            "sem_seg_root": f"mapillary_vistas/{folder}/labels",
            "json_file": None,  # instances have no file of their own in COCO's format
        }
        # Label pictures show 0..65; the last one, "Unlabeled", is no class.
        settings: dict[str, Any] = {"ignore_label": 65, "preparation": _commands("prepare_mapillary_vistas")}
        yield _semantic(f"mapillary_vistas_sem_seg_{part}", "mapillary_65", paths, **settings)
        yield _panoptic(f"mapillary_vistas_panoptic_{part}", "mapillary_65", kind, paths, lists=lists, **settings)
        # Release 2.0 has its own classes for the same pictures. Which ones says a file of the release.
        paths = {
            **paths,
            "panoptic_root": f"mapillary_vistas/{folder}/v2.0/panoptic",
            "panoptic_json": f"mapillary_vistas/{folder}/v2.0/panoptic/panoptic_2020.json",
            "sem_seg_root": f"mapillary_vistas/{folder}/v2.0/labels",
            "class_file": "mapillary_vistas/config_v2.0.json",
        }
        # So is the ignored label.
        settings = {"ignore_label": None, "preparation": f"{settings['preparation']} --version v2.0"}
        yield _semantic(f"mapillary_vistas_v2_sem_seg_{part}", None, paths, **settings)
        yield _panoptic(f"mapillary_vistas_v2_panoptic_{part}", None, kind, paths, lists=lists, **settings)


def _youtube_vis() -> Iterator[Split]:
    for year in (2019, 2021):
        for part, folder in (("train", "train"), ("val", "valid"), ("test", "test")):
            name = f"ytvis_{year}"
            paths: Paths = {
                "image_root": f"{name}/{folder}/JPEGImages",
                "json_file": f"{name}/{folder}.json",
            }
            yield _video(f"{name}_{part}", name, paths)
        # Pictures beside the videos, for training only: their file has COCO's ids, which no evaluator could match.
        paths = {"image_root": "coco/train2017", "json_file": "coco/annotations/instances_train2017.json"}
        names = ClassLists(thing_classes="things")
        yield Split(f"coco_2017_train_as_ytvis_{year}", "coco_as_video", f"ytvis_{year}", "training only", paths, names)
