"""Results of large pictures as files: label maps as tiled (Geo)TIFF or PNG, segments as JSON or GeoJSON.

Files appear whole or not at all, and never over something that is there.
"""

# (H, W) pixels of the picture.

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mask2former.data.masks import id_to_rgb
from mask2former.deploy.geojson import feature, outlines_of
from mask2former.deploy.large_pictures import Georeference
from mask2former.deploy.results import ClassInfo, Segmentation
from mask2former.files import write_atomically

__all__ = ["LABEL_SUFFIXES", "SEGMENT_SUFFIXES", "check_output", "write_label_map", "write_segments"]

#: What `write_label_map` and `write_segments` can write.
LABEL_SUFFIXES = (".tif", ".tiff", ".png")
SEGMENT_SUFFIXES = (".json", ".geojson")

_BLOCK = 512  # sides of the tiles of a TIFF
_DECIMALS = 8  # of degrees: a millimeter


def check_output(path: Path, suffixes: tuple[str, ...]) -> None:
    """Raises ValueError, ModuleNotFoundError, FileNotFoundError or FileExistsError where a file cannot be written."""
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{str(path)!r} must end in one of {', '.join(suffixes)}")
    if path.suffix.lower() in (".tif", ".tiff", ".geojson"):
        _rasterio()
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder of {str(path)!r} does not exist")
    if path.exists():
        raise FileExistsError(f"{path} exists and is not overwritten; choose another name or remove it")


def write_label_map(
    path: Path, segmentation: Segmentation, classes: tuple[ClassInfo, ...], georeference: Georeference | None = None
) -> None:
    """Writes the map of a panoptic or semantic result.

    A panoptic TIFF holds numbers of segments, 0 = none, and a semantic one class indices, with the colors of the
    classes and the highest value of its type for "no data"; both are compressed and tiled, and written strip by strip.
    A PNG is COCO's: ids of segments as red + 256 green + 65536 blue, or class indices in gray (255 or 65535 = no data);
    it is put together in memory (1 to 4 bytes per pixel).

    Raises:
        ValueError: the result has no map: instances may overlap.
    """
    check_output(path, LABEL_SUFFIXES)
    if segmentation.label_map is None:
        raise ValueError(f"a result of the task {segmentation.task} has no label map, for masks may overlap")
    if path.suffix.lower() == ".png":
        write_atomically(path, lambda file: _picture(segmentation, len(classes)).save(file, format="PNG"))
        return
    unfinished = path.with_name(f".{path.stem}.unfinished{path.suffix}")
    try:
        _write_tiff(unfinished, segmentation, classes, georeference)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_segments(path: Path, segmentation: Segmentation, georeference: Georeference | None = None) -> None:
    """Writes the segments: `Segmentation.to_json` with run lengths, or GeoJSON.

    GeoJSON has a polygon along pixel edges for each connected part of a segment, in degrees of longitude and latitude
    (RFC 7946) if the picture has a coordinate system; in the coordinates of its transform if it has only that;
    otherwise in pixels, x to the right and y down.
    """
    check_output(path, SEGMENT_SUFFIXES)
    if path.suffix.lower() == ".json":
        content = segmentation.to_json(masks="rle")
        if georeference is not None:
            crs = georeference.crs
            content["georeference"] = {
                "crs": None if crs is None else crs.to_string(),
                "transform": list(georeference.transform)[:6],
            }
        write_atomically(path, lambda file: file.write(json.dumps(content).encode("utf-8")))
        return
    write_atomically(path, lambda file: _write_features(file, segmentation, georeference))


def _label_type(segmentation: Segmentation, num_classes: int) -> tuple[str, int]:
    """The smallest type that holds every label, and the label of pixels without any."""
    if segmentation.task == "semantic":
        return ("uint8", 255) if num_classes <= 255 else ("uint16", 65535)
    return ("uint16" if len(segmentation.segments) < 2**16 else "uint32"), 0


def _labels(segmentation: Segmentation, rows: slice, dtype: str, void: int) -> NDArray[Any]:
    assert segmentation.label_map is not None, "checked before"
    labels_rW = segmentation.label_map[rows]
    if segmentation.task == "semantic":
        labels_rW = np.where(labels_rW < 0, void, labels_rW)
    return labels_rW.astype(dtype)


def _picture(segmentation: Segmentation, num_classes: int) -> Image.Image:
    dtype, void = _label_type(segmentation, num_classes)
    labels_HW = _labels(segmentation, slice(None), dtype, void)
    if segmentation.task == "panoptic":
        return Image.fromarray(id_to_rgb(labels_HW))
    return Image.fromarray(labels_HW)


def _write_tiff(
    path: Path, segmentation: Segmentation, classes: tuple[ClassInfo, ...], georeference: Georeference | None
) -> None:
    rasterio = _rasterio()
    dtype, void = _label_type(segmentation, len(classes))
    height, width = segmentation.height, segmentation.width
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 1, "dtype": dtype, "nodata": void}
    profile |= {"tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK, "compress": "deflate"}
    profile |= {"BIGTIFF": "IF_SAFER"}
    if georeference is not None:
        profile |= {"crs": georeference.crs, "transform": georeference.transform}
    with rasterio.open(path, "w", **profile) as file:
        if dtype == "uint8":
            colors = {index: (*info.color, 255) for index, info in enumerate(classes)}
            file.write_colormap(1, {**colors, void: (0, 0, 0, 0)})
        if segmentation.task == "semantic":
            file.update_tags(CLASSES=json.dumps([info.name for info in classes]))
        for top in range(0, height, _BLOCK):
            rows = slice(top, min(top + _BLOCK, height))
            file.write(_labels(segmentation, rows, dtype, void), 1, window=((rows.start, rows.stop), (0, width)))


def _write_features(file: IO[bytes], segmentation: Segmentation, georeference: Georeference | None) -> None:
    file.write(b'{"type": "FeatureCollection", "features": [')
    separator = b"\n"
    for number, geometry in _geometries(segmentation, georeference):
        content = feature(number, segmentation.segments[number - 1], geometry)
        file.write(separator + json.dumps(content).encode("utf-8"))
        separator = b",\n"
    file.write(b"\n]}\n")


def _geometries(segmentation: Segmentation, georeference: Georeference | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number of the segment and polygon of every connected part."""
    _rasterio()
    from rasterio.features import shapes
    from rasterio.transform import IDENTITY
    from rasterio.warp import transform_geom

    transform = IDENTITY if georeference is None else georeference.transform
    crs = None if georeference is None else georeference.crs

    def placed(geometry: dict[str, Any]) -> dict[str, Any]:
        if crs is None:
            return geometry
        degrees: dict[str, Any] = transform_geom(crs, "OGC:CRS84", geometry, precision=_DECIMALS)
        return degrees

    if segmentation.label_map is not None:
        number_of_label = {
            segment.category if segmentation.task == "semantic" else number: number
            for number, segment in enumerate(segmentation.segments, start=1)
        }
        labels_HW = np.ascontiguousarray(segmentation.label_map, dtype=np.int32)
        for geometry, label in shapes(labels_HW, connectivity=4, transform=transform):
            if int(label) in number_of_label:
                yield number_of_label[int(label)], placed(geometry)
        return
    for number, segment in enumerate(segmentation.segments, start=1):
        for geometry in outlines_of(segment, transform):
            yield number, placed(geometry)


def _rasterio() -> Any:
    try:
        import rasterio
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"TIFF and GeoJSON files need rasterio: pip install 'mask2former[deploy]' ({error})"
        ) from error
    return rasterio
