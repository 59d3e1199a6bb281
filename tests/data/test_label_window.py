"""Labels looked up through transforms, beside the same transforms applied one after the other."""

import numpy as np
import pytest
from detectron2.data import transforms as T
from fvcore.transforms.transform import PadTransform

from mask2former.data.augmentation import ColorJitter, ColorJitterTransform
from mask2former.data.label_window import LabelWindow

SIZE = (24, 37)
JITTER = ColorJitterTransform(ColorJitter(3.0, None, None, None, False), "RGB")
CASES = {
    "nothing": [],
    "flips": [T.HFlipTransform(37), T.VFlipTransform(24), T.NoOpTransform(), JITTER],
    "enlarged": [T.ResizeTransform(24, 37, 71, 100)],
    "shrunk": [T.ResizeTransform(24, 37, 7, 19)],
    "flipped, enlarged and cut": [
        T.HFlipTransform(37),
        T.ResizeTransform(24, 37, 48, 74),
        T.CropTransform(9, 30, 20, 17),
    ],
    "cut and filled up": [
        T.ResizeTransform(24, 37, 17, 60),
        T.TransformList([T.CropTransform(5, 0, 32, 17), PadTransform(0, 0, 0, 15, 32, 17, seg_pad_value=0)]),
    ],
    "filled up everywhere, then flipped and resized": [
        PadTransform(1, 2, 3, 4, 37, 24, seg_pad_value=0),
        T.VFlipTransform(30),
        T.ResizeTransform(30, 41, 55, 33),
    ],
    "nothing left": [PadTransform(0, 6, 0, 0, 37, 24, seg_pad_value=0), T.CropTransform(3, 0, 5, 6)],
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("channels", [(), (3,)])
def test_a_label_is_where_the_transforms_move_it(case, channels) -> None:
    transforms = T.TransformList(CASES[case])
    labels = np.random.default_rng(0).integers(1, 256, (*SIZE, *channels), dtype=np.uint8)
    window = LabelWindow.after(transforms, SIZE)
    assert window is not None
    assert np.array_equal(window.read(labels), transforms.apply_segmentation(labels))


def test_labels_of_any_integers_can_be_looked_up() -> None:
    window = LabelWindow.after(T.TransformList(CASES["cut and filled up"]), SIZE)
    labels = np.random.default_rng(0).integers(0, 2**24, SIZE, dtype=np.int32)
    shown = window.read(labels)
    assert shown.dtype == np.int32 and np.array_equal(shown.astype(np.uint8), window.read(labels.astype(np.uint8)))


class _Upsidedown(T.HFlipTransform):
    def apply_segmentation(self, segmentation):
        return segmentation[::-1]


@pytest.mark.parametrize(
    "transform", [T.RotationTransform(24, 37, 20), PadTransform(1, 1, 1, 1, seg_pad_value=255), _Upsidedown(37)]
)
def test_transforms_of_other_kinds_have_no_window(transform) -> None:
    assert LabelWindow.after(T.TransformList([T.HFlipTransform(37), transform, T.NoOpTransform()]), SIZE) is None
