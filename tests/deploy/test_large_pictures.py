"""Reading pictures part by part: every kind gives the pixels it means, or says what is missing."""

from __future__ import annotations

import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from mask2former.data.reading import read_image
from mask2former.deploy.large_pictures import ArrayPicture, PictureError, open_picture

EVERYTHING = (slice(0, 70), slice(0, 90))
PART = (slice(13, 50), slice(31, 77))


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)


@pytest.fixture
def write_tiff(tmp_path):
    """Writes bands (C, H, W) as a TIFF and returns its path."""
    rasterio = pytest.importorskip("rasterio")

    def write(bands, *, mask=None, interpretation=None, **profile):
        path = tmp_path / "picture.tif"
        count, height, width = bands.shape
        options = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": bands.dtype}
        options["transform"] = rasterio.Affine(2, 0, 500, 0, -2, 900)
        with rasterio.open(path, "w", **{**options, **profile}) as file:
            file.write(bands)
            if interpretation:
                file.colorinterp = [rasterio.enums.ColorInterp[name] for name in interpretation]
            if mask is not None:
                file.write_mask(mask)
        return path

    return write


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        (".png", "RGB"),
        (".jpg", "RGB"),
        (".png", "L"),
        (".png", "P"),
        (".png", "RGBA"),
        (".jpg", "CMYK"),
        (".bmp", "RGB"),
    ],
)
def test_pillow_pictures_are_what_other_tools_read(tmp_path, image, suffix, mode):
    path = tmp_path / f"picture{suffix}"
    Image.fromarray(image).convert(mode).save(path)
    with open_picture(path) as picture:
        assert picture.size == (70, 90) and picture.georeference is None
        part = picture.read(*PART)
    assert part.valid is None and part.image.dtype == np.uint8
    assert np.array_equal(part.image, read_image(str(path), "RGB")[PART])


def test_exif_turns_the_picture(tmp_path, image):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(image).save(tmp_path / "turned.png", exif=exif)
    with open_picture(tmp_path / "turned.png") as picture:
        assert picture.size == (90, 70)
        assert np.array_equal(picture.read(slice(0, 90), slice(0, 70)).image, np.rot90(image, -1))


@pytest.mark.parametrize("profile", [{}, {"tiled": True, "blockxsize": 32, "blockysize": 16, "compress": "deflate"}])
def test_tiff_parts_are_those_of_the_picture(write_tiff, image, profile):
    with open_picture(write_tiff(image.transpose(2, 0, 1), **profile)) as picture:
        part = picture.read(*PART)
        assert part.valid is None and np.array_equal(part.image, image[PART])
        assert picture.georeference.crs is None and picture.georeference.transform.c == 500


def test_a_coordinate_system_comes_with_the_picture(write_tiff, image):
    with open_picture(write_tiff(image.transpose(2, 0, 1), crs="EPSG:32632")) as picture:
        assert picture.georeference.crs.to_epsg() == 32632


def test_a_plain_tiff_has_no_georeference(tmp_path, image):
    Image.fromarray(image).save(tmp_path / "plain.tif")
    with open_picture(tmp_path / "plain.tif") as picture:
        assert picture.georeference is None and np.array_equal(picture.read(*EVERYTHING).image, image)


def test_a_tiff_without_rasterio_is_decoded(tmp_path, image, monkeypatch):
    Image.fromarray(image).save(tmp_path / "plain.tif")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with open_picture(tmp_path / "plain.tif") as picture:
        assert np.array_equal(picture.read(*PART).image, image[PART])
    with pytest.raises(PictureError, match=r"needs rasterio: pip install 'mask2former\[deploy\]'"):
        open_picture(tmp_path / "plain.tif", bands=[1, 2, 3])


def test_one_band_is_gray(write_tiff, image):
    with open_picture(write_tiff(image[None, :, :, 0])) as picture:
        assert np.array_equal(picture.read(*PART).image, np.repeat(image[PART][..., :1], 3, axis=2))


def test_a_palette_becomes_colors(tmp_path, image):
    Image.fromarray(image).convert("P").save(tmp_path / "palette.tif")
    pytest.importorskip("rasterio")
    with open_picture(tmp_path / "palette.tif") as picture:
        assert np.array_equal(picture.read(*PART).image, read_image(str(tmp_path / "palette.tif"), "RGB")[PART])


def test_bands_that_are_named_by_the_file_are_found(write_tiff, image):
    bands = np.concatenate([image.transpose(2, 0, 1)[::-1], image[None, :, :, 0]])
    path = write_tiff(bands, interpretation=["blue", "green", "red", "undefined"], photometric="minisblack")
    with open_picture(path) as picture:
        assert np.array_equal(picture.read(*PART).image, image[PART])


def test_four_bands_that_the_file_does_not_name_must_be_chosen(write_tiff, image):
    bands = np.concatenate([image.transpose(2, 0, 1), image[None, :, :, 0]])
    path = write_tiff(bands, photometric="minisblack", interpretation=["gray", "undefined", "undefined", "undefined"])
    with pytest.raises(PictureError, match=r"4 bands and does not say .* --bands 1 2 3"):
        open_picture(path)
    with open_picture(path, bands=[3, 2, 1]) as picture:
        assert np.array_equal(picture.read(*PART).image, image[PART][..., ::-1])
    for bands in ([5, 1, 1], [1, 2], [0]):
        with pytest.raises(PictureError, match="must be one or three of the 4"):
            open_picture(path, bands=bands)


def test_two_bands_are_refused(write_tiff, image):
    with pytest.raises(PictureError, match="2 bands"):
        open_picture(write_tiff(image.transpose(2, 0, 1)[:2], interpretation=["gray", "undefined"]))


def test_transparent_pixels_of_a_tiff_have_no_data(write_tiff, image):
    alpha = np.full((1, 70, 90), 255, dtype=np.uint8)
    alpha[:, :, 40:] = 0
    path = write_tiff(
        np.concatenate([image.transpose(2, 0, 1), alpha]), interpretation=["red", "green", "blue", "alpha"]
    )
    with open_picture(path) as picture:
        part = picture.read(*EVERYTHING)
        assert part.valid[:, :40].all() and not part.valid[:, 40:].any() and (part.image[:, 40:] == 0).all()
        assert np.array_equal(part.image[:, :40], image[:, :40])
        assert picture.read(slice(0, 70), slice(0, 40)).valid is None


def test_the_nodata_value_and_the_mask_of_a_file_say_where_there_are_no_data(write_tiff, image):
    gray = np.maximum(image[None, :, :, 0], 1)
    gray[:, 10:20] = 0
    with open_picture(write_tiff(gray, nodata=0)) as picture:
        assert np.array_equal(picture.read(*EVERYTHING).valid, gray[0] > 0)
    mask = np.full((70, 90), 255, dtype=np.uint8)
    mask[:, :30] = 0
    with open_picture(write_tiff(image.transpose(2, 0, 1), mask=mask)) as picture:
        assert np.array_equal(picture.read(*EVERYTHING).valid, mask > 0)


def test_sixteen_bits_need_a_range_of_values(write_tiff, tmp_path, image):
    deep = image[None, :, :, 0].astype(np.uint16) * 16
    path = write_tiff(deep)
    with pytest.raises(PictureError, match="values of type uint16: .* --value-range 0 65535"):
        open_picture(path)
    with open_picture(path, value_range=(0, 255 * 16)) as picture:
        assert np.array_equal(picture.read(*PART).image[..., 0], image[PART][..., 0])


def test_sixteen_bits_of_a_png_are_its_whole_range_unless_another_is_given(tmp_path, image):
    deep = image[..., 0].astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    for value_range in (None, (0, 65535)):
        with open_picture(tmp_path / "deep.png", value_range=value_range) as picture:
            assert np.array_equal(picture.read(*PART).image, np.repeat(image[PART][..., :1], 3, axis=2))
    with open_picture(tmp_path / "deep.png", value_range=(0, 257)) as picture:
        assert picture.read(*PART).image[image[PART][..., 0] > 0].min() == 255


def test_what_lies_beyond_the_range_is_cut_and_nan_has_no_data(write_tiff):
    values = np.linspace(-1, 2, 70 * 90, dtype=np.float32).reshape(1, 70, 90)
    values[0, 3, 4] = np.nan
    with open_picture(write_tiff(values), value_range=(0, 1)) as picture:
        part = picture.read(*EVERYTHING)
    assert part.image[0, 0, 0] == 0 and part.image[-1, -1, 0] == 255
    assert not part.valid[3, 4] and part.valid.sum() == 70 * 90 - 1


@pytest.mark.parametrize("value_range", [(1, 1), (5, 2), (float("nan"), 1)])
def test_a_range_must_ascend(tmp_path, image, value_range):
    Image.fromarray(image).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="must ascend"):
        open_picture(tmp_path / "a.png", value_range=value_range)


def test_complex_values_are_refused(write_tiff):
    with pytest.raises(PictureError, match="complex values"):
        open_picture(write_tiff(np.zeros((1, 70, 90), dtype=np.complex64)))


def header_of_a_huge_png(path, side):
    file = b"\x89PNG\r\n\x1a\n"
    for name, content in (
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"0")),
    ):
        chunk = name + content
        file += struct.pack(">I", len(content)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(file)
    return path


def test_a_file_that_claims_terabytes_is_refused_before_it_is_decoded(tmp_path):
    path = header_of_a_huge_png(tmp_path / "bomb.png", 500_000)
    with pytest.raises(PictureError, match=r"claims 500000 x 500000 pixels, more than .* \(--max-pixels\)"):
        open_picture(path)


def test_the_limit_can_be_raised_above_and_set_below_that_of_pillow(tmp_path, image, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.fromarray(image).save(tmp_path / "a.png")
    with open_picture(tmp_path / "a.png") as picture:
        assert np.array_equal(picture.read(*PART).image, image[PART])
    assert Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(PictureError, match="more than the 6,000 that are allowed"):
        open_picture(tmp_path / "a.png", max_pixels=6000)


def test_a_picture_that_memory_does_not_hold_decoded_is_refused_with_the_cure(tmp_path):
    path = header_of_a_huge_png(tmp_path / "large.png", 20_000)
    with pytest.raises(PictureError, match="takes 1526 MiB when it is decoded, .* convert it to a tiled TIFF"):
        open_picture(path, memory_budget_mb=1000)


def test_a_tiff_of_one_huge_block_is_refused_with_the_cure(write_tiff):
    path = write_tiff(np.zeros((3, 700, 900), dtype=np.uint8), blockysize=700, compress="deflate")
    with pytest.raises(PictureError, match="blocks of 700 x 900, .* gdal_translate"):
        open_picture(path, memory_budget_mb=4)
    open_picture(path, memory_budget_mb=100).close()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.6])
def test_a_file_that_is_cut_off_is_refused_by_name(tmp_path, write_tiff, image, suffix, share):
    if suffix == ".tif":
        path = write_tiff(image.transpose(2, 0, 1))
    else:
        path = tmp_path / f"cut{suffix}"
        Image.fromarray(image).save(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(PictureError, match=path.name), open_picture(path) as picture:
        picture.read(*EVERYTHING)


def test_a_text_file_and_a_missing_file_are_refused_by_name(tmp_path):
    (tmp_path / "notes.png").write_text("no picture")
    with pytest.raises(PictureError, match=r"notes.png is no picture"):
        open_picture(tmp_path / "notes.png")
    with pytest.raises(FileNotFoundError, match=r"absent.png' does not exist"):
        open_picture(tmp_path / "absent.png")
    with pytest.raises(FileNotFoundError):
        open_picture(tmp_path)


def test_an_array_is_a_picture(image):
    picture = ArrayPicture(image)
    assert picture.size == (70, 90) and np.array_equal(picture.read(*PART).image, image[PART])


def test_other_formats_do_not_need_rasterio(tmp_path, image, monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    Image.fromarray(image).save(tmp_path / "a.png")
    with open_picture(tmp_path / "a.png") as picture:
        assert np.array_equal(picture.read(*PART).image, image[PART])
