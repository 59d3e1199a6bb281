"""AP: equal to pycocotools', and boundary AP equal to a slow implementation of the paper."""

from __future__ import annotations

import contextlib
import copy
import io
import math

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mask2former.data.masks import encode_rle
from mask2former.evaluation.average_precision import average_precision

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def _blob(rng, size):
    (y, x), (height, width) = rng.integers(0, size), rng.integers(1, size)
    mask = np.zeros(size, dtype=bool)
    mask[y : y + height, x : x + width] = True
    return mask & (rng.random(size) < 0.9) if rng.random() < 0.3 else mask


def _shapes(mask):
    rle = encode_rle(mask)
    return {"segmentation": rle, "bbox": coco_mask.toBbox(rle).tolist(), "area": float(coco_mask.area(rle))}


def random_case(seed, size, num_images=8, num_random=(0, 20, 130)):
    """Objects of three of four classes (some crowds, some images without), and results with few different scores: near
    the objects, anywhere, empty, of the fourth class; more than 100 in some images and none in others."""
    rng = np.random.default_rng(seed)
    classes = sorted(rng.choice(50, 4, replace=False).tolist())
    content = {
        "images": [{"id": int(number), "height": size[0], "width": size[1]} for number in rng.permutation(num_images)],
        "categories": [{"id": category, "name": f"class {category}"} for category in classes],
        "annotations": [],
    }
    results = []
    for image in range(num_images):
        entry = {"image_id": image}
        for _ in range(rng.integers(0, 8)):
            mask, category = _blob(rng, size), int(rng.choice(classes[:3]))
            numbers = {"id": len(content["annotations"]) + 1, "iscrowd": int(rng.random() < 0.2)}
            content["annotations"].append({**entry, **numbers, "category_id": category, **_shapes(mask)})
            near = np.roll(mask, rng.integers(-4, 4, 2), (0, 1)) & (rng.random() < 0.9)
            guess = category if rng.random() < 0.9 else int(rng.choice(classes))
            results.append({**entry, "category_id": guess, "score": rng.integers(4) / 4, **_shapes(near)})
        for _ in range(num_random[image % 3]):
            guess, mask = int(rng.choice(classes)), _blob(rng, size)
            results.append({**entry, "category_id": guess, "score": rng.integers(4) / 4, **_shapes(mask)})
    rng.shuffle(results)
    return content, [{key: value for key, value in result.items() if key != "area"} for result in results]


def pycocotools(content, results, task, evaluation=COCOeval):
    """Overall figures and AP by class, straight from the library."""
    shape = "bbox" if task == "bbox" else "segmentation"
    found = [{key: result[key] for key in ("image_id", "category_id", "score", shape)} for result in results]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"info": {}, **copy.deepcopy(content)}
        coco.createIndex()
        judged = evaluation(coco, coco.loadRes(copy.deepcopy(found)), task)
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    precision = judged.eval["precision"][:, :, :, 0, -1]
    by_class = [precision[:, :, k][precision[:, :, k] > -1] for k in range(precision.shape[2])]
    overall = [100 * value if value >= 0 else math.nan for value in judged.stats[:6]]
    return dict(zip(NAMES, overall, strict=True)), [100 * p.mean() if p.size else math.nan for p in by_class]


def assert_equal(found, expected):
    overall, by_class = expected
    assert found.overall == pytest.approx(overall, abs=1e-9, nan_ok=True)
    assert found.by_class == pytest.approx(by_class, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(6))
def test_the_fast_figures_are_those_of_pycocotools(seed, task):
    content, results = random_case(seed, size=(180, 240))
    expected = pycocotools(content, results, task)
    assert 0 < expected[0]["AP"] < 100 and not math.isnan(expected[0]["APl"])
    assert_equal(average_precision(content, results, task), expected)
    assert_equal(average_precision(content, results, task, use_pycocotools=True), expected)


def test_ids_of_images_may_be_texts_and_the_input_is_left_alone():
    content, results = random_case(0, size=(40, 50))
    renamed = copy.deepcopy((content, results))
    for entry in [*renamed[0]["annotations"], *renamed[1]]:
        entry["image_id"] = f"ADE_val_{entry['image_id']:08}"
    for image in renamed[0]["images"]:
        image["id"] = f"ADE_val_{image['id']:08}"
    before = copy.deepcopy(renamed)
    expected = average_precision(content, results, "segm")
    assert_equal(average_precision(*renamed, "segm"), (expected.overall, expected.by_class))
    assert renamed == before


def test_polygons_and_run_lengths_of_any_kind_are_read_alike():
    square = np.zeros((20, 30), dtype=bool)
    square[4:12, 5:25] = True
    uncompressed = {"size": [20, 30], "counts": [5 * 20 + 4, *[8, 12] * 19, 8, 4 * 20 + 28]}
    shapes = [[[5.0, 4.0, 25.0, 4.0, 25.0, 12.0, 5.0, 12.0]], uncompressed, encode_rle(square)]
    for shape in shapes:
        content = _one_object(square)
        content["annotations"][0]["segmentation"] = shape
        assert average_precision(content, [_result(square)], "segm").overall["AP"] == pytest.approx(100)
        assert average_precision(content, [_result(square)], "boundary").overall["AP"] == pytest.approx(100)


def _one_object(mask, **changes):
    annotation = {"id": 1, "image_id": 1, "category_id": 3, "iscrowd": 0, **_shapes(mask), **changes}
    images = [{"id": 1, "height": mask.shape[0], "width": mask.shape[1]}]
    return {"images": images, "categories": [{"id": 3, "name": "disc"}], "annotations": [annotation]}


def _result(mask, score=0.5, **changes):
    return {"image_id": 1, "category_id": 3, "score": score, "segmentation": encode_rle(mask), **changes}


@pytest.mark.parametrize("use_pycocotools", [False, True])
def test_an_iou_of_two_thirds_passes_four_of_ten_thresholds(use_pycocotools):
    """IoU 2/3 passes 0.50, 0.55, 0.60 and 0.65; a miss with a higher score halves the precision."""
    true, found, elsewhere = (np.zeros((40, 40), dtype=bool) for _ in range(3))
    true[:12, :10], found[:8, :10], elsewhere[30:, 30:] = True, True, True
    options = {"task": "segm", "use_pycocotools": use_pycocotools}
    judged = average_precision(_one_object(true), [_result(found)], **options)
    assert judged.overall == pytest.approx(
        {"AP": 40, "AP50": 100, "AP75": 0, "APs": 40, "APm": math.nan, "APl": math.nan}, nan_ok=True
    )
    judged = average_precision(_one_object(true), [_result(found), _result(elsewhere, score=0.9)], **options)
    assert judged.overall["AP"] == pytest.approx(20) and judged.by_class == pytest.approx([20])
    assert judged.summary.splitlines()[0].endswith("area=   all | maxDets=100 ] = 0.200")
    assert len(judged.summary.splitlines()) == 12


@pytest.mark.parametrize("use_pycocotools", [False, True])
def test_finding_nothing_is_0_and_nothing_to_find_is_nan(use_pycocotools):
    mask = np.ones((10, 10), dtype=bool)
    options = {"task": "segm", "use_pycocotools": use_pycocotools}
    assert average_precision(_one_object(mask), [], **options).overall["AP"] == 0
    assert math.isnan(average_precision(_one_object(mask, iscrowd=1), [_result(mask)], **options).overall["AP"])


def test_an_annotation_with_id_0_can_be_found():
    """pycocotools by itself takes 0 for "not found"."""
    mask = np.ones((10, 10), dtype=bool)
    assert average_precision(_one_object(mask, id=0), [_result(mask)], "segm").overall["AP"] == pytest.approx(100)


def test_only_the_images_asked_for_count():
    content, results = random_case(1, size=(40, 50))
    kept = [0, 3, 5]
    part = {**content, "images": [image for image in content["images"] if image["id"] in kept]}
    part["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in kept]
    expected = average_precision(part, [entry for entry in results if entry["image_id"] in kept], "segm")
    found = average_precision(content, results, "segm", image_ids=kept)
    assert_equal(found, (expected.overall, expected.by_class))


def test_images_of_several_sizes_may_be_listed_in_any_order():
    masks = {7: np.ones((4, 9), dtype=bool), 3: np.ones((8, 2), dtype=bool)}
    content = {
        "images": [{"id": image, "height": mask.shape[0], "width": mask.shape[1]} for image, mask in masks.items()],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [{"image_id": image, "category_id": 1, **_shapes(mask)} for image, mask in masks.items()],
    }
    results = [{"image_id": image, "category_id": 1, "score": 1.0, **_shapes(mask)} for image, mask in masks.items()]
    assert average_precision(content, results, "segm").overall["AP"] == pytest.approx(100)


class SlowBoundaryEvaluation(COCOeval):
    """The paper's definition, step by step: thickness by Python's rounding, one pixel of erosion at a time."""

    ratio = 0.02

    def __init__(self, truth, found, _):
        super().__init__(truth, found, "segm")

    def computeIoU(self, image_id, category_id):
        true, found = self._gts[image_id, category_id], self._dts[image_id, category_id]
        found = sorted(found, key=lambda result: -result["score"])[: self.params.maxDets[-1]]
        if not true or not found:
            return []
        ious = np.zeros((len(found), len(true)))
        for row, result in enumerate(found):
            for column, annotation in enumerate(true):
                masks = [coco_mask.decode(entry["segmentation"]).astype(bool) for entry in (result, annotation)]
                ious[row, column] = _iou(*masks, annotation["iscrowd"])
                if not annotation["iscrowd"]:
                    boundaries = [_boundary(mask, self.ratio) for mask in masks]
                    ious[row, column] = min(ious[row, column], _iou(*boundaries, False))
        return ious


def _iou(found, true, is_crowd):
    union = found.sum() if is_crowd else (found | true).sum()
    return (found & true).sum() / union if union else 0


def _boundary(mask, ratio):
    thickness = max(1, round(ratio * math.sqrt(mask.shape[0] ** 2 + mask.shape[1] ** 2)))
    inner = mask
    for _ in range(thickness):
        padded = np.pad(inner, 1)  # the border of the picture is a boundary too
        corners = [(y, x) for y in range(3) for x in range(3)]
        inner = np.logical_and.reduce([padded[y : y + mask.shape[0], x : x + mask.shape[1]] for y, x in corners])
    return mask & ~inner


# In pictures of 75 x 100 and 225 x 300 pixels the thickness is 2.5 and 7.5: rounded to 2 and 8.
@pytest.mark.parametrize("size", [(75, 100), (225, 300), (64, 97), (20, 15)])
def test_boundary_ap_is_that_of_the_paper(size):
    content, results = random_case(4, size=size, num_random=(0, 2, 4))
    content["annotations"] = [entry for entry in content["annotations"] if entry["area"]]
    expected = pycocotools(content, results, "boundary", SlowBoundaryEvaluation)
    assert expected[0]["AP"] < pycocotools(content, results, "segm")[0]["AP"]
    assert_equal(average_precision(content, results, "boundary"), expected)


def test_a_thicker_boundary_forgives_more():
    true, found = (np.zeros((100, 100), dtype=bool) for _ in range(2))
    true[20:80, 20:80], found[22:80, 22:80] = True, True
    thin, thick = (
        average_precision(_one_object(true), [_result(found)], "boundary", dilation_ratio=ratio).overall["AP"]
        for ratio in (0.01, 0.2)
    )
    assert thin == 0 < thick == average_precision(_one_object(true), [_result(found)], "segm").overall["AP"]


@pytest.mark.parametrize(
    ("results", "options", "message"),
    [
        ([{"image_id": 9}], {}, "entry 0 of the results has no 'category_id'"),
        ([{"image_id": 9, "category_id": 3, "score": 1, "segmentation": {}}], {}, "of image 9, which the ground truth"),
        ([], {"task": "keypoints"}, "task 'keypoints' is unknown; choose from: bbox, segm, boundary"),
        ([], {"task": "boundary", "use_pycocotools": True}, "task 'boundary' is unknown; choose from: bbox, segm$"),
        ([], {"task": "boundary", "dilation_ratio": 0}, "dilation ratio must be above 0"),
        ([], {"image_ids": [1, 9]}, "image 9 is to be judged, but not in the ground truth"),
    ],
)
def test_bad_input_is_named(results, options, message):
    with pytest.raises(ValueError, match=message):
        average_precision(_one_object(np.ones((4, 6), dtype=bool)), results, **{"task": "segm", **options})


def test_masks_that_cannot_be_compared_are_refused():
    content = _one_object(np.ones((4, 6), dtype=bool))
    with pytest.raises(ValueError, match=r"entry 0 .* mask of \(height, width\) \(6, 4\), its image \(4, 6\)"):
        average_precision(content, [_result(np.ones((6, 4), dtype=bool))], "segm")
    with pytest.raises(ValueError, match="entry 0 of the results must have compressed run lengths"):
        average_precision(content, [_result(np.ones((4, 6), dtype=bool), segmentation=[[0, 0, 1, 0, 1, 1]])], "segm")
    del content["annotations"][0]["area"]
    with pytest.raises(ValueError, match="annotation 0 of the ground truth has no 'area'"):
        average_precision(content, [], "segm")
