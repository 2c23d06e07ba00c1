"""Random damage to images of every format: each is read or rejected, and nothing else fails."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from latentcache.decoders import image
from latentcache.errors import ClipError
from tests.tools import video_fuzz
from tests.tools.bad_videos import picture

DAMAGES = (
    video_fuzz.flip_bits,
    video_fuzz.flip_head,
    video_fuzz.cut_off,
    video_fuzz.cut_out,
    video_fuzz.fill,
)
NUM_FILES = 150
MAX_PIXELS = 1 << 22
REASONS = {"unreadable", "corrupt", "too_large"}
#: Options of Pillow, which reads each of these by other means.
IMAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "jpeg": ("JPEG", {}),
    "progressive jpeg": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {}),
    "lossless webp": ("WEBP", {"lossless": True}),
    "bmp": ("BMP", {}),
    "gif": ("GIF", {}),
    "tiff": ("TIFF", {}),
    "tiff of 64 bits": ("TIFF", {"big_tiff": True}),
    "lzw tiff": ("TIFF", {"compression": "tiff_lzw"}),
    "deflated tiff": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "jpeg tiff": ("TIFF", {"compression": "jpeg"}),
    "avif": ("AVIF", {}),
}


def written(name: str) -> bytes:
    kind, options = IMAGES[name]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "a camera"
    file = io.BytesIO()
    Image.fromarray(picture()).save(file, format=kind, exif=exif, **options)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", IMAGES)
def test_a_damaged_image_is_read_or_has_a_reason_of_its_own(tmp_path: Path, name: str) -> None:
    whole, draw, path = written(name), random.Random(name), tmp_path / "i"
    for number in range(NUM_FILES):
        damage = DAMAGES[number % len(DAMAGES)]
        path.write_bytes(damage(bytearray(whole), draw))
        shapes = []
        for read in (image.shown_shape, shape_of_pixels):
            try:
                shapes.append(read(str(path), MAX_PIXELS))
            except ClipError as error:
                reason = error.reason
                assert reason in REASONS, (name, number)
        assert len(set(shapes)) <= 1, (name, number)


def shape_of_pixels(path: str, max_pixels: int) -> tuple[int, ...]:
    (pixels,) = image.Reader(path, max_pixels).frames(np.zeros(1, np.int64))
    return tuple(pixels.shape[:2])


def test_an_avif_whose_pixels_are_damaged_is_corrupt(tmp_path: Path) -> None:
    """Its library raises what no other does."""
    Image.fromarray(picture()).save(tmp_path / "i.avif")
    data = bytearray((tmp_path / "i.avif").read_bytes())
    at = data.index(b"mdat") + 4
    data[at:] = bytes(len(data) - at)
    (tmp_path / "i.avif").write_bytes(data)
    with pytest.raises(ClipError, match="the image is damaged") as caught:
        image.Reader(str(tmp_path / "i.avif"))
    assert caught.value.reason == "corrupt"
