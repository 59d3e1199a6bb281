"""Damaged, missing and unfitting files: the message names the file."""

import numpy as np
import pytest
from PIL import Image

from mask2former.data.reading import BrokenSampleError, check_size, read_class_map, read_image, read_size


def write(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return str(path)


def noise(*shape) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("share", [0.02, 0.6, 0.97])
def test_a_picture_that_is_cut_off_is_an_error_with_its_name(tmp_path, suffix, share) -> None:
    path = tmp_path / f"picture{suffix}"
    write(path, noise(40, 50, 3))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(BrokenSampleError, match=f"picture{suffix}"):
        read_image(str(path), "RGB")


def test_a_missing_picture_is_an_error_with_its_name(tmp_path) -> None:
    with pytest.raises(BrokenSampleError, match=r"absent\.png does not exist"):
        read_image(str(tmp_path / "absent.png"), "RGB")


def test_a_text_file_is_no_picture(tmp_path) -> None:
    (tmp_path / "picture.png").write_text("not a picture")
    with pytest.raises(BrokenSampleError, match=r"picture\.png is not a picture"):
        read_image(str(tmp_path / "picture.png"), "RGB")


def test_channels_come_in_the_order_asked_for(tmp_path) -> None:
    image = noise(4, 5, 3)
    path = write(tmp_path / "picture.png", image)
    assert np.array_equal(read_image(path, "RGB"), image)
    assert np.array_equal(read_image(path, "BGR"), image[..., ::-1])


def test_a_gray_picture_becomes_color(tmp_path) -> None:
    assert read_image(write(tmp_path / "gray.png", noise(4, 5)), "RGB").shape == (4, 5, 3)


def test_a_turned_photograph_is_turned_back_and_so_is_its_size(tmp_path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn
    path = write(tmp_path / "turned.jpg", noise(20, 30, 3), exif=exif)
    assert read_image(path, "RGB").shape == (30, 20, 3)
    assert read_size(path) == (30, 20)


def test_small_and_large_labels_keep_their_values(tmp_path) -> None:
    small, large = noise(4, 5), np.array([[0, 846, 65535]], dtype=np.uint16)
    read_small, read_large = (
        read_class_map(write(tmp_path / name, array)) for name, array in (("s.png", small), ("l.tif", large))
    )
    assert read_small.dtype == np.uint8 and np.array_equal(read_small, small)
    assert read_large.dtype == np.int32 and np.array_equal(read_large, large)


def test_palette_labels_are_indices(tmp_path) -> None:
    labels = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), mode="L").convert("P")
    labels.putpalette([200, 10, 10, 10, 200, 10, 10, 10, 200])
    labels.putdata([0, 1, 2, 1])
    labels.save(tmp_path / "palette.png")
    assert read_class_map(str(tmp_path / "palette.png")).tolist() == [[0, 1], [2, 1]]


def test_colored_labels_are_refused(tmp_path) -> None:
    with pytest.raises(BrokenSampleError, match=r"labels\.png must be a gray or palette label picture"):
        read_class_map(write(tmp_path / "labels.png", noise(4, 5, 3)))


def test_the_size_is_read_from_the_head_of_a_file(tmp_path) -> None:
    path = tmp_path / "picture.png"
    write(path, noise(40, 50, 3))
    path.write_bytes(path.read_bytes()[:100])
    assert read_size(str(path)) == (40, 50)
    with pytest.raises(BrokenSampleError, match=r"absent\.png does not exist"):
        read_size(str(tmp_path / "absent.png"))


def test_sizes_that_differ_name_both_sides() -> None:
    check_size("a.png", (4, 5, 3), (4, 5), "b.jpg")
    with pytest.raises(BrokenSampleError, match=r"a\.png has \(height, width\) \(4, 5\), but b\.jpg has \(5, 4\)"):
        check_size("a.png", (4, 5), (5, 4), "b.jpg")
