"""Panoptic quality of semantic results."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from panopticapi.evaluation import pq_compute
from PIL import Image

from mask2former.data.masks import encode_rle, id_to_rgb
from mask2former.evaluation.semantic_evaluation import SemanticEvaluator
from mask2former.evaluation.semantic_pq import count_segments, evaluate_semantic_pq, summarize

NAME, NUM_CLASSES, VOID = "tiny_semantic_pq_val", 5, 255
TOOL = Path(__file__).parents[2] / "tools" / "evaluate_pq_for_semantic_segmentation.py"


@pytest.fixture
def register(tmp_path: Path) -> Iterator[Callable[..., list[str]]]:
    """`register(maps, suffix=".png", **metadata)`: a dataset of these label maps; returns the names of its pictures."""

    def register(
        maps: list[np.ndarray], suffix: str = ".png", names: list[str] | None = None, **metadata: Any
    ) -> list[str]:
        names = names or [f"/elsewhere/{index:03d}.jpg" for index in range(len(maps))]
        records = []
        for index, (labels, name) in enumerate(zip(maps, names, strict=True)):
            label_file = str(tmp_path / f"labels_{index}{suffix}")
            Image.fromarray(labels).save(label_file)
            records.append({"file_name": name, "sem_seg_file_name": label_file})
        DatasetCatalog.register(NAME, lambda: records)
        MetadataCatalog.get(NAME).set(
            stuff_classes=[f"class {index}" for index in range(NUM_CLASSES)], **{"ignore_label": VOID, **metadata}
        )
        return names

    yield register
    if NAME in DatasetCatalog.list():
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """`write(names, maps)`: a result file with one entry for each value of each map but VOID; returns its path."""

    def write(names: list[str], maps: list[np.ndarray]) -> str:
        entries = [
            {"file_name": name, "category_id": int(category), "segmentation": encode_rle(labels == category)}
            for name, labels in zip(names, maps, strict=True)
            for category in np.unique(labels)
            if category != VOID
        ]
        path = tmp_path / "sem_seg_predictions.json"
        path.write_text(json.dumps(entries))
        return str(path)

    return write


def _rows(*rows: str) -> np.ndarray:
    """A label map of one digit per pixel; "." is the void, or nothing predicted."""
    return np.array([[VOID if cell == "." else int(cell) for cell in row] for row in rows], dtype=np.uint8)


TRUTH = [_rows("0000", "0000", "1111", "222."), _rows("3333", "3333", "....", "....")]
RESULT = [_rows("0000", "0001", "1111", "1112"), _rows("33..", "33..", "4444", "4411")]
# Picture 1: 0 is found with 7 of 8 pixels; 1 with 4 of 8; 2 not at all (its pixel is void: ignored). Picture 2: 3 has 4
# of 8 pixels; 4 and 1 lie in the void.
# Class 0: TP, IoU 7/8. Class 1: FP and FN (4/8 is not above 1/2). Class 2: FN. Class 3: FP and FN. Class 4: none.


def test_the_figures_are_those_computed_by_hand(register: Callable, write: Callable) -> None:
    names = register(TRUTH)
    result = evaluate_semantic_pq(NAME, write(names, RESULT))
    assert result.num_classes == 4
    assert (result.pq, result.sq, result.rq) == pytest.approx((7 / 8 / 4, 7 / 8 / 4, 1 / 4))
    # Classes 0 to 3 have 7/8, 4/8, 0/3 and 4/8; a class predicted in the void only is none.
    assert result.mean_iou == pytest.approx((7 / 8 + 1 / 2 + 0 + 1 / 2) / 4)
    assert [line.split() for line in result.table().splitlines()[2:]] == [
        ["All", "|", "21.9", "21.9", "25.0", "4"],
        ["Stuff", "|", "21.9", "21.9", "25.0", "4"],
        ["mIoU:", "0.468750"],
    ]


def test_pixels_without_prediction_are_of_no_class() -> None:
    truth = np.zeros((1, 4), dtype=np.uint8)
    counts = count_segments(np.array([[NUM_CLASSES] * 2 + [1] * 2]), truth, NUM_CLASSES)
    assert counts.hit.tolist() == [0] * NUM_CLASSES
    assert counts.false_negatives.tolist() == [1, 0, 0, 0, 0]
    assert counts.false_positives.tolist() == [0, 1, 0, 0, 0]


@pytest.mark.parametrize(("num_void", "is_false"), [(2, True), (3, False)])
def test_what_lies_mostly_in_the_void_is_not_counted_as_false(num_void: int, is_false: bool) -> None:
    truth = np.array([[NUM_CLASSES] * num_void + [1] * (4 - num_void)])
    counts = count_segments(np.zeros((1, 4), dtype=np.uint8), truth, NUM_CLASSES)
    assert counts.false_positives[0] == is_false


def test_nothing_at_all_has_no_figures() -> None:
    nothing = np.full((2, 2), NUM_CLASSES)
    result = summarize(count_segments(nothing, nothing, NUM_CLASSES))
    assert np.isnan([result.pq, result.sq, result.rq, result.mean_iou]).all() and result.num_classes == 0


def _blobs(seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """True maps of large areas, and results that are wrong or missing in some of them and here and there."""
    generator = np.random.default_rng(seed)
    truth, results = [], []
    for _ in range(6):
        cells = generator.choice([*range(NUM_CLASSES), VOID], size=(4, 5))
        labels = np.kron(cells, np.ones((6, 6))).astype(np.uint8)
        errs = generator.random(labels.shape) < generator.choice([0.05, 0.4])
        guess = generator.choice([*range(NUM_CLASSES), VOID], size=labels.shape)
        truth.append(labels)
        results.append(np.where(errs | (labels == VOID), guess, labels).astype(np.uint8))
    return truth, results


def test_the_figures_are_those_of_panopticapi(
    register: Callable, write: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    maps = dict(zip(("truth", "result"), _blobs(seed=0), strict=True))
    for part, labels_of in maps.items():
        (tmp_path / part).mkdir()
        annotations = []
        for index, labels in enumerate(labels_of):
            ids = np.where(labels == VOID, 0, labels.astype(np.int32) + 1)
            Image.fromarray(id_to_rgb(ids)).save(tmp_path / part / f"{index}.png")
            segments = [
                {"id": int(segment), "category_id": int(segment) - 1, "iscrowd": 0, "area": int((ids == segment).sum())}
                for segment in np.unique(ids)
                if segment
            ]
            annotations.append({"image_id": index, "file_name": f"{index}.png", "segments_info": segments})
        categories = [{"id": index, "isthing": int(index == 0)} for index in range(NUM_CLASSES)]
        (tmp_path / f"{part}.json").write_text(json.dumps({"annotations": annotations, "categories": categories}))
    expected = pq_compute(str(tmp_path / "truth.json"), str(tmp_path / "result.json"))["All"]
    capsys.readouterr()

    found = evaluate_semantic_pq(NAME, write(register(maps["truth"]), maps["result"]))
    assert 0.2 < expected["pq"] < 0.8
    assert found[:4] == pytest.approx(tuple(expected[key] for key in ("pq", "sq", "rq", "n")))


def test_results_of_our_evaluation_on_16_bit_labels_have_its_miou(register: Callable, tmp_path: Path) -> None:
    id_map = {100 + 10 * index: index for index in range(NUM_CLASSES)}
    truth, _ = _blobs(seed=1)
    wide = [np.where(labels == VOID, np.uint16(65535), labels) for labels in truth]
    names = register(wide, suffix=".tif", ignore_label=65535, stuff_dataset_id_to_contiguous_id=id_map)
    evaluator = SemanticEvaluator(NAME, str(tmp_path))
    generator = torch.Generator().manual_seed(0)
    for name in names:
        scores = torch.rand(NUM_CLASSES, 24, 30, generator=generator)
        evaluator.process([{"file_name": name}], [{"sem_seg": scores}])
    expected = evaluator.evaluate()["sem_seg"]
    result = evaluate_semantic_pq(NAME, str(tmp_path / "sem_seg_predictions.json"))
    assert 100 * result.mean_iou == pytest.approx(expected["mIoU"])


def test_pictures_of_one_name_in_several_folders_are_told_apart(register: Callable, write: Callable) -> None:
    names = register(TRUTH, names=["a/1.jpg", "b/1.jpg"])
    assert evaluate_semantic_pq(NAME, write(names[::-1], RESULT[::-1])).pq == pytest.approx(7 / 32)
    with pytest.raises(ValueError, match="c/1.jpg, which is no picture of the dataset"):
        evaluate_semantic_pq(NAME, write(["a/1.jpg", "c/1.jpg"], RESULT))


@pytest.mark.parametrize(
    ("names", "maps", "message"),
    [
        (["x/000.jpg", "x/7.jpg"], RESULT, r"prediction for x/7\.jpg, which is no picture"),
        (["x/000.jpg"], RESULT[:1], r"no prediction for 1 of 2 pictures of the dataset; the first is .*001\.jpg"),
        (["x/000.jpg", "x/001.jpg"], [RESULT[0], _rows("77", "77")], "category 7 of x/001.jpg .* 5 between 0 and 4"),
        (["x/000.jpg", "x/001.jpg"], [RESULT[0], _rows("11", "11")], r"001\.jpg cannot be used: .*\(2, 2\).*\(4, 4\)"),
        (["x/000.jpg", "x/001.jpg", "x/000.jpg"], [*RESULT, RESULT[0]], r"000\.jpg has pixels of two segments"),
    ],
)
def test_results_that_do_not_fit_the_dataset_are_refused(
    register: Callable, write: Callable, names: list[str], maps: list[np.ndarray], message: str
) -> None:
    register(TRUTH)
    with pytest.raises(ValueError, match=message):
        evaluate_semantic_pq(NAME, write(names, maps))


def test_labels_of_no_class_are_refused(register: Callable, write: Callable) -> None:
    names = register([TRUTH[0], _rows("3339", "3333", "3333", "3333")])
    with pytest.raises(ValueError, match=r"labels_1\.png has the labels \[9\]"):
        evaluate_semantic_pq(NAME, write(names, RESULT))


@pytest.mark.parametrize("content", ["[{", '{"a": 1}', '[{"file_name": "x/000.jpg"}]', "[1]", '[{"file_name": 1}]'])
def test_files_that_are_no_results_are_refused(register: Callable, tmp_path: Path, content: str) -> None:
    register(TRUTH)
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"broken\.json cannot be used"):
        evaluate_semantic_pq(NAME, str(path))


def test_a_dataset_without_semantic_labels_is_refused(register: Callable, write: Callable) -> None:
    names = register(TRUTH)
    for record in DatasetCatalog.get(NAME):
        del record["sem_seg_file_name"]
    with pytest.raises(ValueError, match=f"'{NAME}' has no semantic labels"):
        evaluate_semantic_pq(NAME, write(names, RESULT))


def test_the_script_prints_the_table(
    register: Callable, write: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = write(register(TRUTH), RESULT)
    monkeypatch.setattr(sys, "argv", [str(TOOL), "--dataset-name", NAME, "--json-file", path])
    runpy.run_path(str(TOOL), run_name="__main__")
    assert capsys.readouterr().out == evaluate_semantic_pq(NAME, path).table() + "\n"


@pytest.mark.parametrize(
    ("name", "message"), [("nope", "'nope' is not registered"), (NAME, "result file 'absent.json' does not exist")]
)
def test_the_script_says_what_is_wrong(
    register: Callable, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    register(TRUTH)
    monkeypatch.setattr(sys, "argv", [str(TOOL), "--dataset-name", name, "--json-file", "absent.json"])
    with pytest.raises(SystemExit, match=message):
        runpy.run_path(str(TOOL), run_name="__main__")
