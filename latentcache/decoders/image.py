"""Pillow: an image is a video of one frame at 0 s."""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError, features

from latentcache.core.machine import install_command
from latentcache.decoders.facts import VideoFacts
from latentcache.decoders.frames import Frame
from latentcache.decoders.image_heads import HEAD_BYTES, suffix_by_content, webp_shape
from latentcache.decoders.packets import PacketTable
from latentcache.decoders.ranged import RangedPath
from latentcache.decoders.streams import check_pixels
from latentcache.decoders.trouble import (
    ProcessTroubleError,
    has_room,
    lack_of_memory,
    reading,
    trouble_of,
)
from latentcache.errors import ClipError

NAME = "pillow"
Image.MAX_IMAGE_PIXELS = None  # corpus.max_pixels it is, for images and videos alike
#: What is opened, whatever a file is called: the formats of the suffixes that are images. Pillow knows many
#: more and tells them by content, so that a PNG which is EPS would start Ghostscript.
FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "BMP",
    "TIFF",
    "GIF",
    *(["AVIF"] if features.check("avif") else []),
)
#: Pillow would cut their values off at 255, and what is black and white in them is not known.
_UNBOUNDED_MODES = frozenset({"I", "F"})

#: Orientations of EXIF in which height and width are swapped.
_TURNED = frozenset({5, 6, 7, 8})

#: What Pillow's readers raise for files that they do not understand, and the libraries behind them.
_PILLOW_ERRORS: tuple[type[Exception], ...] = (
    OSError, ValueError, SyntaxError, LookupError, TypeError, AttributeError, EOFError, ArithmeticError,
    RuntimeError, AssertionError, BufferError, struct.error, zlib.error,
)  # fmt: skip
#: What decoding an image takes per pixel, at most: AVIF takes 20 to 25.
_PIXEL_BYTES = 32
#: What opening a WebP takes per pixel: two canvases of 4 bytes, and something for the rest.
_CANVAS_BYTES = 9


@dataclass(frozen=True, kw_only=True)
class _Plugin:
    """A package that makes Pillow read another format, for files that are called so, or have no suffix."""

    format: str
    package: str
    extra: str


_HEIF = _Plugin(format="HEIF", package="pillow_heif", extra="heif")
_PLUGINS = {
    ".heic": _HEIF,
    ".heif": _HEIF,
    ".jxl": _Plugin(format="JXL", package="pillow_jxl", extra="jxl"),
}


class _File(io.BufferedReader):
    """A local file of which whatever a read fails with is trouble, and any other failure is Pillow's."""

    def __init__(self, path: str) -> None:
        super().__init__(io.FileIO(path))
        self._size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1) -> bytes:
        """Read bytes, no more than there are, whatever a header asks for. Raises ProcessTroubleError."""
        left = max(0, self._size - self.tell())
        with reading():
            return super().read(left if size is None or size < 0 else min(size, left))


class Reader:
    """An open image, turned as its EXIF orientation says; of an animated one, the first picture."""

    name = NAME
    end_s = 0.0
    facts = VideoFacts()
    packets: PacketTable | None = None

    def __init__(self, path: str, max_pixels: int | None = None) -> None:
        self.times_s = np.zeros(1)
        with _open(path) as file, _image(file, path) as image:
            check_pixels(image.height, image.width, max_pixels)
            try:
                image.load()
                self._pixels = _to_rgb(image)
            except ClipError:
                raise
            except NotImplementedError as error:
                raise _unknown(error) from error
            except _PILLOW_ERRORS as error:
                raise _lack_of_memory(error, image) or _damaged(error) from error

    def frames(self, indices: npt.NDArray[np.int64]) -> Iterator[Frame]:
        """Yield the image [h, w, 3]."""
        assert indices.max(initial=0) == 0
        yield self._pixels


def shown_shape(path: str, max_pixels: int | None = None) -> tuple[int, int]:
    """Return the height and width of an image as shown, from its header. Raises ClipError.

    Some formats say only at their end how they are turned, and are read to there.
    """
    with _open(path) as file, _image(file, path) as image:
        check_pixels(image.height, image.width, max_pixels)
        _refuse_unbounded(image)
        try:
            is_turned = image.getexif().get(ExifTags.Base.Orientation) in _TURNED
        except _PILLOW_ERRORS as error:
            raise _damaged(error) from error
        height, width = _stored_shape(image)
        return (width, height) if is_turned else (height, width)


def _stored_shape(image: Image.Image) -> tuple[int, int]:
    """Return height and width before the image is turned: of a TIFF Pillow has swapped them already."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return image.tag_v2[ExifTags.Base.ImageLength], image.tag_v2[ExifTags.Base.ImageWidth]
    return image.height, image.width


def _open(path: str) -> IO[bytes]:
    """Open a file for Pillow, which gets no path: else it would open the file itself, and map it."""
    if isinstance(path, RangedPath):
        return cast("IO[bytes]", path.open())
    try:
        with reading():
            return cast("IO[bytes]", _File(path))
    except FileNotFoundError as error:
        raise ClipError("missing", f"no such file: {path}") from error


def _image(file: IO[bytes], path: str) -> Image.Image:
    """Read an image's header. What Pillow refuses there is another variant as often as it is damage."""
    formats = (*FORMATS, *_plugged_in(file, path))
    try:
        return Image.open(file, formats=formats)
    except FileNotFoundError as error:
        raise ClipError("missing", f"no such file: {path}") from error
    except UnidentifiedImageError as error:
        raise _unidentified(file, formats) from error
    except NotImplementedError as error:
        raise _unknown(error) from error
    except _PILLOW_ERRORS as error:
        trouble = trouble_of(error, is_parsers=True) or _lack_of_canvas(file)
        raise trouble or (_damaged(error) if _is_astray(error) else _unknown(error)) from error


def _plugged_in(file: IO[bytes], path: str) -> tuple[str, ...]:
    """Return the format of a file's suffix, or of its content if it has none, if another package reads it.

    Raises ClipError if that is not installed: all other files can still be read.
    """
    plugin = _PLUGINS.get(Path(path).suffix.lower() or suffix_by_content(_head(file)))
    if plugin is None:
        return ()
    if importlib.util.find_spec(plugin.package) is None:
        raise ClipError(
            "unreadable",
            f"{plugin.format} is read by {plugin.package}, which is not installed. Run: "
            f"{install_command(plugin.extra)}; then precompute takes the file in",
        )
    module = importlib.import_module(plugin.package)  # pillow_jxl registers itself
    if plugin is _HEIF:
        module.register_heif_opener()
    return (plugin.format,)


def _head(file: IO[bytes]) -> bytes:
    file.seek(0)
    head = file.read(HEAD_BYTES)
    file.seek(0)
    return head


def _unidentified(file: IO[bytes], formats: Sequence[str]) -> ClipError:
    """Return what is wrong with a file that Pillow finds to be of none of some formats."""
    head = _head(file)
    for name in formats:
        accepts = Image.OPEN[name][1] if name in Image.OPEN else None
        if accepts is not None and accepts(head) is True:
            return ClipError(
                "unreadable",
                f"the file begins as {name}, and what follows is damaged, or a variant that Pillow cannot "
                "read. Convert it to PNG, say",
            )
    known = ", ".join(formats)
    return ClipError("unreadable", f"the file is no image of these formats: {known}")


def _unknown(error: BaseException) -> ClipError:
    return ClipError(
        "unreadable",
        f"Pillow cannot read this variant of the format: {error}. Convert it to PNG, say",
    )


def _damaged(error: BaseException) -> ClipError | ProcessTroubleError:
    if "not available" in str(error):  # a decoder that this build of Pillow lacks
        return _unknown(error)
    if trouble := trouble_of(error, is_parsers=True):
        return trouble
    said = "it points to where nothing can be read" if _is_astray(error) else str(error)
    return ClipError("corrupt", f"the image is damaged: {said}")


def _lack_of_memory(error: BaseException, image: Image.Image) -> ProcessTroubleError | None:
    """Return what is said as if the image was damaged: the libraries of AVIF and HEIF do not tell it."""
    is_vague = isinstance(error, RuntimeError) or "memory" in str(error)
    needed = _PIXEL_BYTES * image.height * image.width
    return lack_of_memory() if is_vague and not has_room(needed) else None


def _lack_of_canvas(file: IO[bytes]) -> ProcessTroubleError | None:
    """Return why a WebP cannot be opened if that is for want of memory, which its library does not tell."""
    shape = webp_shape(_head(file))
    return lack_of_memory() if shape and not has_room(_CANVAS_BYTES * shape[0] * shape[1]) else None


def _is_astray(error: BaseException) -> bool:
    """Tell whether the system refused to read where Pillow wanted to."""
    return isinstance(error, OSError) and error.errno is not None


def _to_rgb(image: Image.Image) -> Frame:
    """Return an image as uint8 [h, w, 3], turned as shown: 16-bit grey scaled, transparency dropped."""
    turned = ImageOps.exif_transpose(image)
    if turned.mode.startswith("I;16"):
        black, white = _levels_of_grey(image)
        most = max(black, white)
        values = np.abs(np.array(turned).astype(np.int32) - black)
        grey = (values * 255 + most // 2) // most
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    _refuse_unbounded(turned)
    return np.array(turned.convert("RGB"))


def _levels_of_grey(image: Image.Image) -> tuple[int, int]:
    """Return which values of 16-bit grey are black and white: Pillow gives them as they are stored.

    A TIFF's can have 12 bits, and begin with white.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 0, (1 << 16) - 1
    most = (1 << image.tag_v2[ExifTags.Base.BitsPerSample][0]) - 1
    begins_with_white = image.tag_v2.get(ExifTags.Base.PhotometricInterpretation, 0) == 0
    return (most, 0) if begins_with_white else (0, most)


def _refuse_unbounded(image: Image.Image) -> None:
    if image.mode in _UNBOUNDED_MODES:
        raise ClipError(
            "unreadable",
            f"the image's values are 32 bits (mode {image.mode}), and which of them are black and "
            "white is unknown. Convert it to 8 or 16 bits",
        )
