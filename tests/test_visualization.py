"""Drawings: what is painted, what is left out, and that small pictures become legible."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from detectron2.structures import Instances

from mask2former.evaluation.run_lengths import encode_masks
from mask2former.modeling.postprocessing import RunLengthMasks
from mask2former.visualization import (
    class_color,
    class_name,
    display_scale,
    draw_instances,
    draw_panoptic,
    draw_prediction,
    draw_semantic,
    enlarge,
    strip,
)

SIZE = (40, 60)


@pytest.fixture
def metadata():
    metadata = Metadata(name="drawing")
    metadata.thing_classes = ["cat", "dog"]
    metadata.stuff_classes = ["cat", "dog", "sky"]
    metadata.stuff_colors = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    return metadata


@pytest.fixture
def image():
    return np.full((*SIZE, 3), 128, dtype=np.uint8)


def box_mask(top, left, bottom, right):
    mask = np.zeros(SIZE, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def changed(picture, image):
    """Which pixels of the picture differ from the image, at the picture's size."""
    return (picture != enlarge(image, picture.shape[0] // image.shape[0])).any(-1)


def test_names_and_colors_come_from_the_list_of_all_classes(metadata):
    assert class_name(metadata, 2) == "sky"
    assert class_color(metadata, 1) == (0, 250, 0)


def test_a_class_beyond_the_lists_still_gets_a_name_and_a_color(metadata):
    assert class_name(metadata, 7) == "class 7"
    assert all(0 <= channel <= 255 for channel in class_color(metadata, 1000))


def test_thing_classes_alone_are_enough():
    metadata = Metadata(name="instances only")
    metadata.thing_classes = ["cat"]
    assert class_name(metadata, 0) == "cat"
    assert class_color(metadata, 0) != class_color(metadata, 1)


@pytest.mark.parametrize(
    ("size", "scale"),
    [((96, 96), 4), ((320, 500), 1), ((319, 500), 2), ((1080, 1920), 1), ((3, 500), 8), ((5000, 1), 1)],
)
def test_small_pictures_are_enlarged_by_a_whole_factor(size, scale):
    assert display_scale(*size) == scale
    assert display_scale(scale * size[0], scale * size[1]) == 1, "what is drawn is not enlarged again in a strip"


def test_a_panoptic_drawing_paints_segments_and_leaves_void_alone(image, metadata):
    panoptic_map = np.zeros(SIZE, dtype=np.int32)
    panoptic_map[:, 30:] = 1
    info = [{"id": 1, "category_id": 2, "isthing": False}]
    picture = draw_panoptic(image, panoptic_map, info, metadata, scale=1)
    assert picture.shape == image.shape and picture.dtype == np.uint8
    assert not changed(picture, image)[:, :29].any()
    assert picture[2, 50, 2] > 128 > picture[2, 50, 0]  # blue sky over gray


def test_the_input_picture_is_not_changed(image, metadata):
    before = image.copy()
    draw_semantic(image, np.full(SIZE, 2), metadata, scale=1)
    assert (image == before).all()


def test_the_threshold_hides_panoptic_segments_of_low_score(image, metadata):
    panoptic_map = np.ones(SIZE, dtype=np.int32)
    info = [{"id": 1, "category_id": 0, "isthing": True, "score": 0.6}]
    assert changed(draw_panoptic(image, panoptic_map, info, metadata, threshold=0.5), image).any()
    assert not changed(draw_panoptic(image, panoptic_map, info, metadata, threshold=0.7), image).any()


def test_the_threshold_hides_instances_of_low_score(image, metadata):
    masks = np.stack([box_mask(5, 5, 20, 20), box_mask(22, 40, 38, 58)])
    picture = draw_instances(image, masks, [0, 1], metadata, scores=[0.9, 0.4], threshold=0.5, scale=1)
    assert changed(picture, image)[10, 10]
    assert not changed(picture, image)[36, 56]


def test_boxes_are_tight_around_their_masks(image, metadata):
    mask = box_mask(10, 8, 30, 9) | box_mask(29, 8, 30, 40)  # an L: only a box paints the upper right corner
    picture = draw_instances(image, mask[None], [1], metadata, scale=1)
    painted = changed(picture, image)
    assert painted[11:29, 39].all() and not painted[11:29, 40].any()
    assert painted[10, 25] and painted[20, 8] and not painted[20, 7]


def test_a_second_instance_of_a_class_has_another_color_unless_switched_off(image, metadata):
    masks = np.stack([box_mask(0, 0, 20, 20), box_mask(20, 40, 40, 60)])
    varied, same = (
        draw_instances(image, masks, [0, 0], metadata, scores=[0.9, 0.8], vary_instances=vary) for vary in (True, False)
    )
    scale = display_scale(*SIZE)
    first, second = (slice(None, 10 * scale), 10 * scale), (36 * scale, 56 * scale)
    assert (varied[second] != same[second]).any()
    assert (varied[first] == same[first]).all()


def test_an_object_of_a_video_keeps_its_color_among_other_objects(image, metadata):
    masks = np.stack([box_mask(0, 0, 20, 20), box_mask(20, 40, 40, 60)])
    both = draw_instances(image, masks, [0, 0], metadata, track_ids=[3, 7])
    second = draw_instances(image, masks[1:], [0], metadata, track_ids=[7])
    first_as_7 = draw_instances(image, masks[:1], [0], metadata, track_ids=[7])
    scale = display_scale(*SIZE)
    left, right = (slice(None, 10 * scale), 10 * scale), (36 * scale, 56 * scale)
    assert (both[right] == second[right]).all()
    assert (both[left] != first_as_7[left]).any(), "objects of one class have different colors"


def test_objects_of_a_video_are_told_apart_by_number_and_stuff_is_not(image, metadata, monkeypatch):
    painted = []
    monkeypatch.setattr(
        "mask2former.visualization.paint_regions", lambda image, regions, scale: painted.extend(regions)
    )
    panoptic_map = np.repeat([[1] * 30 + [2] * 30], SIZE[0], axis=0)
    info = [
        {"id": 1, "category_id": 0, "isthing": True, "score": 0.9, "track_id": 12},
        {"id": 2, "category_id": 2, "isthing": False, "score": 0.8, "track_id": 1},
    ]
    draw_panoptic(image, panoptic_map, info, metadata)
    assert {region.text for region in painted} == {"cat #12", "sky 80%"}
    assert [region.color for region in painted if region.text == "sky 80%"] == [class_color(metadata, 2)]


def test_nothing_to_draw_gives_the_picture_back(image, metadata):
    assert not changed(draw_instances(image, np.zeros((0, *SIZE)), [], metadata), image).any()
    assert not changed(draw_panoptic(image, np.zeros(SIZE, dtype=int), [], metadata), image).any()
    assert not changed(draw_instances(image, np.zeros((1, *SIZE)), [0], metadata), image).any()


@pytest.mark.parametrize("label", [-1, 3, 255])
def test_pixels_without_a_class_stay_unpainted_in_a_semantic_drawing(image, metadata, label):
    assert not changed(draw_semantic(image, np.full(SIZE, label), metadata), image).any()


def test_many_overlapping_names_stay_inside_the_picture(image, metadata):
    masks = np.stack([box_mask(0, 50, 8, 60)] * 12)
    picture = draw_instances(image, masks, [0] * 12, metadata)
    assert picture.shape == (SIZE[0] * 8, SIZE[1] * 8, 3)


def sky_everywhere(score):
    scores = torch.full((3, *SIZE), (1 - score) / 2)
    scores[2] = score
    return scores


def one_instance(score):
    instances = Instances(SIZE)
    instances.pred_masks = torch.from_numpy(box_mask(5, 5, 20, 20))[None]
    instances.pred_classes, instances.scores = torch.tensor([0]), torch.tensor([score])
    return instances


def test_a_prediction_is_drawn_as_panoptic_if_it_has_all_results(image, metadata):
    panoptic_map = torch.ones(SIZE, dtype=torch.int32)
    info = [{"id": 1, "category_id": 1, "isthing": True}]
    results = {"panoptic_seg": (panoptic_map, info), "instances": one_instance(0.9), "sem_seg": sky_everywhere(0.9)}
    expected = draw_panoptic(image, panoptic_map.numpy(), info, metadata)
    assert (draw_prediction(image, results, metadata) == expected).all()
    del results["panoptic_seg"]
    assert (draw_prediction(image, results, metadata) != expected).any()


@pytest.mark.parametrize("key", ["instances", "sem_seg"])
def test_the_threshold_acts_on_every_kind_of_prediction(image, metadata, key):
    results = {"instances": one_instance(0.7)} if key == "instances" else {"sem_seg": sky_everywhere(0.7)}
    assert changed(draw_prediction(image, results, metadata, threshold=0.6), image).any()
    assert not changed(draw_prediction(image, results, metadata, threshold=0.8), image).any()


@pytest.mark.parametrize("threshold", [None, 0.6, 0.8])
def test_labels_with_confidence_are_drawn_as_their_scores_would_be(image, metadata, threshold):
    scores = sky_everywhere(0.7)
    labels = {"sem_seg": scores.argmax(0).int(), "sem_seg_confidence": scores.amax(0)}
    expected = draw_prediction(image, {"sem_seg": scores}, metadata, threshold=threshold)
    assert (draw_prediction(image, labels, metadata, threshold=threshold) == expected).all()


def test_instances_as_run_lengths_are_drawn_as_masks(image, metadata):
    instances = Instances.cat([one_instance(0.9), one_instance(0.4)])
    expected = draw_prediction(image, {"instances": instances}, metadata)
    instances.pred_masks = RunLengthMasks(encode_masks(instances.pred_masks))
    assert (draw_prediction(image, {"instances": instances}, metadata) == expected).all()
    nothing = draw_prediction(image, {"instances": instances}, metadata, threshold=0.95)
    assert not changed(nothing, image).any()


def test_instances_below_one_half_are_hidden_by_default(image, metadata):
    assert not changed(draw_prediction(image, {"instances": one_instance(0.4)}, metadata), image).any()


def test_a_prediction_without_a_result_names_the_config_keys(image, metadata):
    with pytest.raises(ValueError, match="PANOPTIC_ON"):
        draw_prediction(image, {}, metadata)


def test_a_picture_that_is_not_uint8_rgb_is_refused(image, metadata):
    with pytest.raises(ValueError, match="float32"):
        draw_semantic(image.astype(np.float32), np.zeros(SIZE, dtype=int), metadata)


def test_a_map_of_another_size_is_refused(image, metadata):
    with pytest.raises(ValueError, match="label map"):
        draw_semantic(image, np.zeros((3, 3), dtype=int), metadata)


def black(height, width):
    return np.zeros((height, width, 3), dtype=np.uint8)


def test_a_strip_holds_all_pictures_at_the_greatest_height():
    result = strip([black(330, 400), black(360, 320)])
    assert result.shape[0] == 360 and result.shape[1] >= 720
    assert (result == 0).all(-1).sum() == 330 * 400 + 360 * 320


def test_a_strip_enlarges_small_pictures_to_the_size_of_their_drawings(image, metadata):
    drawing = draw_semantic(image, np.zeros(SIZE), metadata)
    result = strip([image, drawing])
    assert result.shape[0] == drawing.shape[0]
    assert (result[:, : drawing.shape[1]] == 128).all()


def test_captions_stand_above_the_pictures_and_are_cut_to_their_width():
    result = strip([np.full((320, 330, 3), 128, dtype=np.uint8)] * 2, ["a", "a caption that is too long " * 9])
    bar_height = result.shape[0] - 320
    assert bar_height > 0
    assert (result[:bar_height, :330] < 100).any() and (result[:bar_height, -330:] < 100).any()
    assert (result[:bar_height, 330:332] == 255).all()


def test_a_strip_refuses_a_wrong_number_of_captions():
    with pytest.raises(ValueError, match="2 pictures"):
        strip([black(8, 8)] * 2, ["one"])
