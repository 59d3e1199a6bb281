"""The model of videos: a clip in, instances with a mask in every frame out; an image is a clip of one frame."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances

from mask2former.config import load_config
from mask2former.modeling.masks import MaskLogits
from mask2former.modeling.postprocessing import MaskSizes, resized_to_output, video_inference
from tests.golden import CONFIGS, fill_deterministically, golden, picture, random_normal
from tests.tiny_model import NUM_CLASSES, NUM_QUERIES, tiny_model, tiny_sample

VIDEO = ("MODEL.META_ARCHITECTURE", "VideoMaskFormer")
DECODER = ("MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", "VideoMultiScaleMaskedTransformerDecoder")
NO_IMAGE_TASKS = [
    item for task in ("SEMANTIC", "INSTANCE", "PANOPTIC") for item in (f"MODEL.MASK_FORMER.TEST.{task}_ON", False)
]


@torch.no_grad()
def test_full_inference_of_a_clip_equals_the_original() -> None:
    expected = golden()["full_inference_video"]
    config_file = CONFIGS / "youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml"
    model = build_model(load_config(config_file, ["MODEL.DEVICE", "cpu"])).eval()
    fill_deterministically(model)
    frames = [picture(seed, (80, 112)) for seed in (7, 8, 9)]
    result = model([{"image": frames, "height": 60, "width": 90}])
    assert list(result["image_size"]) == expected["image_size"]
    assert result["pred_labels"] == expected["labels"]
    assert {(masks.dtype, masks.shape) for masks in result["pred_masks"]} == {(torch.bool, (3, 60, 90))}
    # With random weights rounding moves, somewhere, a mask across the threshold of what its query reads: one query of a
    # hundred then differs, and with scores that lie 1e-5 apart it may push another out of the ten.
    scores = [min(abs(score - other) for other in result["pred_scores"]) for score in expected["scores_sorted"]]
    assert sorted(scores)[7] < 1e-5
    pixels = [[int(frame.sum()) for frame in masks] for masks in result["pred_masks"]]
    distances = [
        min(max(abs(found - wanted) for found, wanted in zip(one, recorded, strict=True)) for one in pixels)
        for recorded in expected["mask_pixels_per_frame"]
    ]
    assert sorted(distances)[7] <= 5


def make_clip(num_frames: int) -> dict:
    return {"image": [tiny_sample(seed=seed)["image"] for seed in range(num_frames)]}


@torch.no_grad()
def test_a_clip_of_one_frame_is_an_image_but_for_the_positions() -> None:
    image_model, video_model = tiny_model().eval(), tiny_model(*VIDEO).eval()  # both with positions of images
    video_model.load_state_dict(image_model.state_dict())
    clip = make_clip(1)
    (as_image,) = image_model.predict([{"image": clip["image"][0]}])
    (as_clip,) = video_model.predict([clip])
    torch.testing.assert_close(as_clip.class_logits, as_image.class_logits, rtol=0, atol=0)
    torch.testing.assert_close(as_clip.masks.dense(), as_image.masks.dense(), rtol=0, atol=0)
    assert as_clip.sizes == as_image.sizes


@torch.no_grad()
def test_every_frame_of_a_clip_gets_the_masks_of_its_own_pixels() -> None:
    model = tiny_model(*VIDEO, *DECODER, *NO_IMAGE_TASKS).eval()
    (prediction,) = model.predict([make_clip(3)])
    assert prediction.masks.dense().shape == (1, NUM_QUERIES, 3, 16, 16)
    result = model([{**make_clip(3), "height": 50, "width": 30}])
    assert result["image_size"] == (50, 30)
    assert len(result["pred_masks"]) == min(10, NUM_QUERIES * NUM_CLASSES)
    assert all(masks.shape == (3, 50, 30) for masks in result["pred_masks"])


def test_the_rule_takes_the_best_combinations_and_resizes_as_images_are() -> None:
    class_logits = random_normal(1, 5, 4)
    masks = MaskLogits(random_normal(2, 1, 5, 8), random_normal(3, 1, 2, 8, 6, 7))
    sizes = MaskSizes((24, 28), (20, 25), (33, 44))
    result = video_inference(class_logits, masks, sizes, topk=4)
    probabilities = class_logits.softmax(-1)[:, :-1].flatten()
    order = probabilities.argsort(descending=True)[:4]
    assert result["pred_scores"] == pytest.approx(probabilities[order].tolist())
    assert result["pred_labels"] == (order % 3).tolist()
    for place, masks_THW in zip(order // 3, result["pred_masks"], strict=True):
        expected = resized_to_output(masks.dense()[0, place], sizes) > 0
        assert torch.equal(masks_THW, expected)


def test_clips_of_a_batch_and_clips_for_a_model_of_images_are_refused() -> None:
    with pytest.raises(ValueError, match="videos are segmented one at a time, got a batch of 2"):
        tiny_model(*VIDEO).eval()([make_clip(2), make_clip(2)])
    with pytest.raises(ValueError, match="clips of 2 frames; .*VideoMaskFormer"):
        tiny_model().eval()([make_clip(2)])


def test_clips_train() -> None:
    model = tiny_model(*VIDEO, *DECODER).train()
    samples = []
    for seed in (0, 5):
        frames = [tiny_sample(seed=seed + frame) for frame in range(2)]
        instances = frames[0]["instances"]
        masks = torch.stack([frame["instances"].gt_masks for frame in frames], dim=1)  # (N, T, h, w)
        instances.remove("gt_masks")
        instances.gt_masks = masks
        samples.append({"image": [frame["image"] for frame in frames], "instances": instances})
    losses = model(samples)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert model.sem_seg_head.predictor.query_feat.weight.grad.abs().sum() > 0


def test_clips_without_any_object_train_as_background() -> None:
    model = tiny_model(*VIDEO, *DECODER).train()
    clip = make_clip(2)
    instances = Instances(clip["image"][0].shape[-2:])
    instances.gt_classes = torch.zeros(0, dtype=torch.int64)
    instances.gt_masks = torch.zeros(0, 2, *clip["image"][0].shape[-2:], dtype=torch.bool)
    losses = model([{**clip, "instances": instances}])
    assert all(loss.item() == 0 for name, loss in losses.items() if "mask" in name or "dice" in name)
    assert losses["loss_ce"].item() > 0
