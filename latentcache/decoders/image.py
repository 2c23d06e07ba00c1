"""Pillow: an image is a video of one frame at 0 s."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from latentcache.decoders.frames import Frame
from latentcache.errors import ClipError

NAME = "pillow"


class Reader:
    """An open image, turned as its EXIF orientation says."""

    name = NAME
    end_s = 0.0

    def __init__(self, path: str) -> None:
        self.times_s = np.zeros(1)
        try:
            with Image.open(path) as image:
                self._pixels = np.array(ImageOps.exif_transpose(image).convert("RGB"))
        except FileNotFoundError as error:
            raise ClipError("missing", f"no such file: {path}") from error
        except (UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise ClipError("unreadable", f"cannot be opened as an image: {error}") from error
        except (OSError, ValueError, SyntaxError) as error:
            raise ClipError("corrupt", f"the image is damaged: {error}") from error

    def frames(self, indices: npt.NDArray[np.int64]) -> Iterator[Frame]:
        """Yield the image [h, w, 3]."""
        assert indices.max(initial=0) == 0
        yield self._pixels
