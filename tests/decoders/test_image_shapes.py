"""What an image's header says of its shape is what comes out when it is decoded, in every format."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from latentcache.decoders import image
from tests.tools.ranged_bytes import ranged

SHAPE = (40, 64)
XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="%d"/></x:xmpmeta>'
#: Formats that say how they are turned, with options of Pillow for those that it reads in several ways.
FORMATS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "JPEG": ("JPEG", {}),
    "PNG": ("PNG", {}),
    "WEBP": ("WEBP", {}),
    "lossless WEBP": ("WEBP", {"lossless": True}),
    "TIFF": ("TIFF", {}),
    "TIFF by libtiff": ("TIFF", {"compression": "tiff_lzw"}),
    "TIFF of 64 bits": ("TIFF", {"big_tiff": True}),
    "AVIF": ("AVIF", {}),
}
#: Where the right upper corner goes: whether it is below, and right.
CORNERS = {
    1: (False, True),
    2: (False, False),
    3: (True, False),
    4: (True, True),
    5: (True, False),
    6: (True, True),
    7: (False, True),
    8: (False, False),
}
#: Where it is said: tags win.
WHERE = ("tag", "xmp", "both")


def written(name: str, orientation: int, where: str) -> bytes:
    """An image of which the right upper corner, as stored, is white."""
    pixels = np.zeros((*SHAPE, 3), np.uint8)
    pixels[: SHAPE[0] // 4, -SHAPE[1] // 4 :] = 255
    kind, options = FORMATS[name]
    exif = Image.Exif()
    xmp = (XMP % (6 if where == "both" else orientation)).encode()
    if where != "xmp":
        exif[ExifTags.Base.Orientation] = orientation
    said: dict[str, Any] = {"exif": exif} if where != "xmp" else {}
    if where != "tag" and kind == "TIFF":
        exif[ExifTags.Base.XMLPacket] = xmp
        said["exif"] = exif
    elif where != "tag" and kind == "PNG":
        said["pnginfo"] = PngImagePlugin.PngInfo()
        said["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())
    elif where != "tag":
        said["xmp"] = xmp
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=kind, **options, **said)
    return file.getvalue()


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", FORMATS)
def test_the_header_of_a_turned_image_says_the_shape_that_is_decoded(
    tmp_path: Path, name: str, orientation: int, where: str
) -> None:
    if (name, orientation, where) == ("AVIF", 1, "both"):
        pytest.skip("Pillow writes no tag that says 1 into an AVIF")
    path = tmp_path / "i"
    path.write_bytes(data := written(name, orientation, where))
    (pixels,) = image.Reader(str(path)).frames(np.zeros(1, np.int64))
    assert pixels.shape[:2] == (SHAPE if orientation < 5 else SHAPE[::-1])
    assert image.shown_shape(str(path)) == pixels.shape[:2]
    assert image.shown_shape(ranged(data)) == pixels.shape[:2]
    (again,) = image.Reader(ranged(data)).frames(np.zeros(1, np.int64))
    np.testing.assert_array_equal(again, pixels)
    white = np.argwhere(pixels.min(axis=2) > 200).mean(axis=0) > np.array(pixels.shape[:2]) / 2
    assert tuple(white) == CORNERS[orientation]
