"""Pictures of strangers: what viewers show, and a sentence for whatever is no picture."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mask2former.data.reading import read_image
from mask2former.deploy.decoding import PICTURE_FORMATS, PictureError, PictureTooLargeError, decode_picture

LIMIT = 10_000
EXIF_ORIENTATION = 274


def noise(height=30, width=40, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(picture, file_format, **options):
    file = io.BytesIO()
    picture.save(file, file_format, **options)
    return file.getvalue()


def png_head(width, height):
    """A PNG that states this size and has no pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def turned_jpeg():
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    return encoded(noise(), "JPEG", exif=exif)


VALID = {
    "jpeg": encoded(noise(), "JPEG"),
    "png": encoded(noise(), "PNG"),
    "webp": encoded(noise(), "WEBP", lossless=True),
    "tiff": encoded(noise(), "TIFF"),
    "bmp": encoded(noise(), "BMP"),
    "gif": encoded(noise(), "GIF"),
    "gray": encoded(noise().convert("L"), "PNG"),
    "black and white": encoded(noise().convert("1"), "PNG"),
    "palette": encoded(noise().convert("P"), "PNG"),
    "transparent": encoded(noise().convert("RGBA"), "PNG"),
    "transparent gray": encoded(noise().convert("LA"), "PNG"),
    "cmyk": encoded(noise().convert("CMYK"), "JPEG"),
    "animated gif": encoded(noise(), "GIF", save_all=True, append_images=[noise(seed=1)]),
    "animated png": encoded(noise(), "PNG", save_all=True, append_images=[noise(seed=1)]),
    "animated webp": encoded(noise(), "WEBP", save_all=True, append_images=[noise(seed=1)], lossless=True),
    "pages": encoded(noise(), "TIFF", save_all=True, append_images=[noise(seed=1)]),
    "turned": turned_jpeg(),
    "one pixel": encoded(noise(1, 1), "PNG"),
}


@pytest.mark.parametrize("name", VALID)
def test_uploads_are_read_as_files_on_the_disk_are(tmp_path, name):
    path = tmp_path / "picture"
    path.write_bytes(VALID[name])
    picture = decode_picture(VALID[name], max_pixels=LIMIT)
    assert picture.dtype == np.uint8 and np.array_equal(picture, read_image(str(path), "RGB"))


@pytest.mark.parametrize(
    "name", ["png", "webp", "tiff", "bmp", "animated png", "animated webp", "pages", "transparent"]
)
def test_lossless_pictures_and_first_frames_come_out_as_they_went_in(name):
    assert np.array_equal(decode_picture(VALID[name], max_pixels=LIMIT), np.asarray(noise()))


def test_photographs_are_turned_as_their_camera_was_held():
    assert decode_picture(VALID["turned"], max_pixels=LIMIT).shape == (40, 30, 3)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_of_16_bits_the_upper_eight_are_used(file_format):
    gray = np.array([[0, 255, 256], [32768, 65279, 65535]], dtype=np.uint16)
    picture = decode_picture(encoded(Image.fromarray(gray), file_format), max_pixels=LIMIT)
    assert picture.shape == (2, 3, 3)
    assert picture[..., 0].tolist() == [[0, 0, 1], [128, 254, 255]] and (picture == picture[..., :1]).all()


@pytest.mark.parametrize(("mode", "kind"), [("I", "integers"), ("F", "floats")])
def test_values_without_a_known_range_are_refused(mode, kind):
    with pytest.raises(PictureError, match=f"32-bit {kind}"):
        decode_picture(encoded(noise().convert(mode), "TIFF"), max_pixels=LIMIT)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GIF89a",
        b"not a picture at all",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        png_head(0, 0),
        png_head(5, 0),
    ],
)
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(PictureError, match=r"no picture.*JPEG, PNG"):
        decode_picture(data, max_pixels=LIMIT)


@pytest.mark.parametrize("file_format", PICTURE_FORMATS)
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_files_that_are_cut_off_are_refused(file_format, share):
    data = encoded(noise(), file_format)
    with pytest.raises(PictureError, match="damaged"):
        decode_picture(data[: int(share * len(data))], max_pixels=LIMIT)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(50_000, 50_000), (12_000, 12_000), (101, 100), (2**31 - 1, 2**31 - 1)])
def test_pictures_with_too_many_pixels_are_refused_by_their_head(size):
    with pytest.raises(PictureTooLargeError, match="more than the 10,000"):
        decode_picture(png_head(*size), max_pixels=LIMIT)


def test_the_limit_itself_is_accepted():
    assert decode_picture(encoded(noise(100, 100), "PNG"), max_pixels=LIMIT).shape == (100, 100, 3)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # damaged tags
@pytest.mark.parametrize("file_format", PICTURE_FORMATS)
def test_damage_anywhere_is_a_picture_error_or_a_picture(file_format):
    rng = np.random.default_rng(0)
    whole = np.frombuffer(encoded(noise(), file_format), dtype=np.uint8)
    num_refused = 0
    for _ in range(200):
        data = whole.copy()
        # Most of what a decoder can stumble over is in the head.
        places = rng.integers(0, min(200, len(data)) if rng.random() < 0.7 else len(data), 6)
        data[places] = rng.integers(0, 256, 6)
        try:
            decode_picture(data.tobytes(), max_pixels=LIMIT)
        except PictureError:
            num_refused += 1
    assert num_refused > 20
