"""AP over time: cases whose answer is known, and random ones against a slow implementation that follows the paper."""

import math

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mask2former.evaluation.track_precision import track_average_precision

SIZE = (400, 500)
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]


def encode(mask):
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {**rle, "counts": rle["counts"].decode()}


def box(top, left, bottom, right, size=SIZE):
    mask = np.zeros(size, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def truth(tracks, *, size=SIZE, length=2, num_videos=1):
    """Tracks (video, category, masks or None of the frames[, iscrowd])."""
    videos = [
        {"id": 10 + number, "height": size[0], "width": size[1], "file_names": [f"{t}.jpg" for t in range(length)]}
        for number in range(num_videos)
    ]
    annotations = [
        {**entry(*track[:3]), "id": number, "iscrowd": track[3] if len(track) > 3 else 0}
        for number, track in enumerate(tracks)
    ]
    return {"videos": videos, "categories": CATEGORIES, "annotations": annotations}


def entry(video, category, masks):
    shapes = [None if mask is None else encode(mask) for mask in masks]
    return {"video_id": video, "category_id": category, "segmentations": shapes}


def result(video, category, masks, score):
    return {**entry(video, category, masks), "score": score}


def test_perfect_tracks_give_100_and_classes_without_objects_nothing() -> None:
    tracks = [(10, 3, [box(0, 0, 50, 60), box(10, 0, 60, 60)]), (10, 3, [None, box(100, 100, 390, 400)])]
    precision = track_average_precision(truth(tracks), [result(*track, 0.5) for track in tracks])
    assert precision.overall["AP"] == precision.overall["AP50"] == precision.overall["AR10"] == pytest.approx(100)
    assert precision.overall["AR1"] == pytest.approx(50)
    assert precision.by_class[0] == pytest.approx(100) and math.isnan(precision.by_class[1])


def test_a_frame_in_which_only_one_is_seen_adds_to_the_union_alone() -> None:
    # 60 of 100 pixels are shared: IoU 0.6 counts for the thresholds 0.5, 0.55 and 0.6.
    square, strip = box(0, 0, 10, 6), box(0, 0, 10, 4)
    content = truth([(10, 3, [square, strip])])
    precision = track_average_precision(content, [result(10, 3, [square, None], 0.9)])
    assert precision.overall["AP50"] == pytest.approx(100)
    assert precision.overall["AP75"] == pytest.approx(0)
    assert precision.overall["AP"] == pytest.approx(100 * 3 / 10)


def test_an_object_that_is_right_in_space_and_wrong_in_time_is_not_found() -> None:
    square = box(0, 0, 10, 6)
    content = truth([(10, 3, [square, None])])
    assert track_average_precision(content, [result(10, 3, [None, square], 0.9)]).overall["AP"] == 0


def test_the_size_of_an_object_is_its_mean_area_where_it_is_seen() -> None:
    # 200 x 200 pixels in one of two frames: medium; over all frames it would be 20,000 pixels, medium too, but
    # 300 x 300 in one frame is large although half of it, 45,000, is medium.
    for mask, name in ((box(0, 0, 200, 200), "APm"), (box(0, 0, 300, 300), "APl"), (box(0, 0, 100, 100), "APs")):
        content = truth([(10, 3, [mask, None])])
        overall = track_average_precision(content, [result(10, 3, [mask, None], 1.0)]).overall
        assert {key for key in ("APs", "APm", "APl") if not math.isnan(overall[key])} == {name}
        assert overall[name] == pytest.approx(100)


def test_nothing_found_is_0_and_nothing_to_find_is_no_number() -> None:
    content = truth([(10, 3, [box(0, 0, 9, 9), None])])
    assert track_average_precision(content, []).overall["AP"] == 0
    assert math.isnan(track_average_precision(truth([]), []).overall["AP"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video_id": 99}, "result 0 is of video 99"),
        ({"category_id": 4}, "result 0 is of category 4"),
        ({"segmentations": [None]}, "result 0 has 1 masks for the 2 frames of video 10"),
    ],
)
def test_results_that_do_not_fit_the_ground_truth_are_named(change, message) -> None:
    square = box(0, 0, 10, 6)
    with pytest.raises(ValueError, match=message):
        track_average_precision(truth([]), [{**result(10, 3, [square, square], 1.0), **change}])


# ---- the slow way: pixels, loops, and COCO's rules as they are told --------------------------------------------------


def slow_iou(found, target):
    shared = sum((a & b).sum() for a, b in zip(found, target["masks"], strict=True))
    if target["iscrowd"]:
        return shared / max(1, sum(a.sum() for a in found))
    return shared / max(1, sum((a | b).sum() for a, b in zip(found, target["masks"], strict=True)))


def slow_area(masks):
    seen = [mask.sum() for mask in masks if mask.any()]
    return sum(seen) / len(seen) if seen else 0


def slow_average(targets, found, threshold, area, most):
    """AP and recall of one class at one IoU threshold, for objects with a mean area within bounds."""
    low, high = area
    hits, scores = [], []
    num_targets = 0
    for video in sorted({track["video"] for track in [*targets, *found]}):
        here = [t for t in targets if t["video"] == video]
        for target in here:
            target["ignored"] = target["iscrowd"] or not low <= slow_area(target["masks"]) <= high
        here.sort(key=lambda target: target["ignored"])
        num_targets += sum(not target["ignored"] for target in here)
        taken = set()
        for track in sorted((f for f in found if f["video"] == video), key=lambda f: -f["score"])[:most]:
            best, chosen = min(threshold, 1 - 1e-10), None
            for number, target in enumerate(here):
                if number in taken and not target["iscrowd"]:
                    continue
                if chosen is not None and not here[chosen]["ignored"] and target["ignored"]:
                    break
                iou = slow_iou(track["masks"], target)
                if iou < best:
                    continue
                best, chosen = iou, number
            if chosen is None:
                if low <= slow_area(track["masks"]) <= high:
                    hits.append(False)
                    scores.append(track["score"])
                continue
            taken.add(chosen)
            if not here[chosen]["ignored"]:
                hits.append(True)
                scores.append(track["score"])
    if not num_targets:
        return None
    order = np.argsort([-score for score in scores], kind="mergesort")
    is_hit = np.array(hits, dtype=float)[order]
    recall = np.cumsum(is_hit) / num_targets
    precision = np.cumsum(is_hit) / np.arange(1, len(is_hit) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
    return np.mean([precision[p] if p < len(precision) else 0 for p in places]), recall[-1] if len(recall) else 0


def slow_precision(targets, found):
    thresholds = np.linspace(0.5, 0.95, 10)

    def mean(part, thresholds, area, most):
        values = []
        for category in (3, 7):
            of_class = [[t for t in tracks if t["category"] == category] for tracks in (targets, found)]
            for threshold in thresholds:
                both = slow_average(*of_class, threshold, area, most)
                values += [] if both is None else [both[part]]
        return 100 * np.mean(values) if values else math.nan

    everything = (0, 1e10)
    return {
        "AP": mean(0, thresholds, everything, 100),
        "AP50": mean(0, thresholds[:1], everything, 100),
        "AP75": mean(0, thresholds[5:6], everything, 100),
        "APs": mean(0, thresholds, (0, 128**2), 100),
        "APm": mean(0, thresholds, (128**2, 256**2), 100),
        "APl": mean(0, thresholds, (256**2, 1e10), 100),
        "AR1": mean(1, thresholds, everything, 1),
        "AR10": mean(1, thresholds, everything, 10),
    }


@pytest.mark.parametrize("seed", range(4))
def test_random_tracks_are_judged_as_by_the_slow_way(seed) -> None:
    rng = np.random.default_rng(seed)
    size, length, num_videos = (300, 320), 3, 3
    targets, found = [], []
    for video in range(10, 10 + num_videos):
        for _ in range(rng.integers(1, 5)):
            side = int(rng.choice([30, 150, 280]))
            top, left = rng.integers(0, 300 - side, 2)
            masks = [box(top + 5 * t, left, top + 5 * t + side, left + side, size) for t in range(length)]
            masks = [mask & (rng.random() < 0.8) for mask in masks]
            if not any(mask.any() for mask in masks):
                masks[0] = box(0, 0, side, side, size)
            category = int(rng.choice([3, 7]))
            iscrowd = int(rng.random() < 0.15)
            targets.append({"video": video, "category": category, "masks": masks, "iscrowd": iscrowd})
            for _ in range(rng.integers(0, 3)):
                near = [np.roll(mask, rng.integers(-12, 12, 2), (0, 1)) & (rng.random() < 0.95) for mask in masks]
                guess = category if rng.random() < 0.8 else 10 - category
                found.append({"video": video, "category": guess, "masks": near, "score": rng.random()})
    content = truth(
        [(t["video"], t["category"], [m if m.any() else None for m in t["masks"]], t["iscrowd"]) for t in targets],
        size=size,
        length=length,
        num_videos=num_videos,
    )
    results = [result(f["video"], f["category"], f["masks"], f["score"]) for f in found]
    expected = slow_precision(targets, found)
    assert 0 < expected["AP"] < 100
    assert track_average_precision(content, results).overall == pytest.approx(expected, abs=1e-6, nan_ok=True)
