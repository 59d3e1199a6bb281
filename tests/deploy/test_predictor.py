"""The predictor: any sizes in, results at these sizes out, and no picture influences another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper, Metadata
from PIL import Image
from torch import nn

from mask2former.config import load_config
from mask2former.deploy.predictor import Predictor

CONFIG = "configs/digits/panoptic.yaml"


class Recorder(nn.Module):
    """Stands in for a model: keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, batch):
        self.calls.append(batch)
        return [{"mean": sample["image"].float().mean(dim=(1, 2))} for sample in batch]


def recording_predictor(**settings):
    model = Recorder()
    return Predictor(model=model, metadata=Metadata(), **{"min_size": 64, "max_size": 128, **settings}), model


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(0)
    return Predictor.from_config(load_config(CONFIG, ["MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", "0.0"]))


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_results_have_the_size_of_the_picture(predictor):
    result = predictor(picture(50, 70))
    assert result["sem_seg"].shape == (13, 50, 70)
    assert result["panoptic_seg"][0].shape == (50, 70)
    assert result["instances"].image_size == (50, 70)
    assert not result["sem_seg"].requires_grad


def test_a_batch_gives_what_each_picture_gives_alone(predictor):
    pictures = [picture(60, 80, seed) for seed in range(3)]
    for together, image in zip(predictor(pictures), pictures, strict=True):
        alone = predictor(image)
        torch.testing.assert_close(together["sem_seg"], alone["sem_seg"], rtol=1e-4, atol=1e-5)
        assert (together["panoptic_seg"][0] != alone["panoptic_seg"][0]).float().mean() < 1e-3
        # A score is an average over the mask: rounding that moves one pixel of a small mask across its edge shows here.
        torch.testing.assert_close(together["instances"].scores, alone["instances"].scores, rtol=1e-2, atol=1e-4)


def test_an_array_of_pictures_is_a_batch(predictor):
    assert len(predictor(np.stack([picture(40, 40), picture(40, 40)]))) == 2


def test_an_empty_batch_gives_no_results():
    assert recording_predictor()[0]([]) == []


def test_pictures_of_different_sizes_keep_their_order_and_never_share_padding():
    predictor, model = recording_predictor()
    pictures = [np.full(shape, value, dtype=np.uint8) for value, shape in enumerate([(64, 64, 3), (64, 90, 3)] * 2)]
    results = predictor(pictures)
    assert [result["mean"][0].item() for result in results] == [0, 1, 2, 3]
    assert sorted(len(batch) for batch in model.calls) == [2, 2]


def test_pictures_are_resized_as_in_evaluation(tmp_path):
    cfg = load_config(CONFIG)
    file = tmp_path / "picture.png"
    Image.fromarray(picture(150, 210)).save(file)
    expected = DatasetMapper(cfg, is_train=False)({"file_name": str(file)})["image"]
    predictor, model = recording_predictor(min_size=cfg.INPUT.MIN_SIZE_TEST, max_size=cfg.INPUT.MAX_SIZE_TEST)
    predictor(picture(150, 210))
    ((sample,),) = model.calls
    assert torch.equal(sample["image"], expected) and sample["image"].dtype == torch.uint8
    assert (sample["height"], sample["width"]) == (150, 210)


def test_callers_pass_rgb_whatever_the_model_wants():
    red = np.zeros((64, 64, 3), dtype=np.uint8)
    red[..., 0] = 200
    assert recording_predictor(channel_order="RGB")[0](red)["mean"].tolist() == [200, 0, 0]
    assert recording_predictor(channel_order="BGR")[0](red)["mean"].tolist() == [0, 0, 200]


def test_an_unknown_channel_order_is_refused():
    with pytest.raises(ValueError, match="INPUT.FORMAT='L'"):
        recording_predictor(channel_order="L")


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 500, 3), (500, 1, 3)])
def test_very_thin_pictures_keep_at_least_one_pixel(shape):
    predictor, model = recording_predictor()
    predictor(np.zeros(shape, dtype=np.uint8))
    ((sample,),) = model.calls
    assert min(sample["image"].shape) >= 1


@pytest.mark.parametrize(
    "image", [np.zeros((40, 40, 3)), np.zeros((40, 40), np.uint8), np.zeros((40, 40, 4), np.uint8)]
)
def test_pictures_of_another_type_or_shape_are_refused(image):
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8 RGB"):
        recording_predictor()[0](image)


def test_the_message_says_which_picture_of_a_batch_is_wrong():
    with pytest.raises(ValueError, match="picture 1 has no pixels"):
        recording_predictor()[0]([picture(40, 40), np.zeros((0, 40, 3), dtype=np.uint8)])


def test_read_only_and_mirrored_arrays_are_accepted():
    image = picture(64, 64)
    image.setflags(write=False)
    predictor, _ = recording_predictor()
    assert torch.equal(predictor(image)["mean"], predictor(image[:, ::-1])["mean"])
