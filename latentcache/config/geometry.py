"""The parts of `clips` that say what becomes of a picture: buckets, and how it is resized."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from latentcache.config.base import GrownSection

#: Of pictures, in pixels. Presets list all sizes of an area, so a number without end would be no error but
#: a list without end; and numbers beyond any float have no ratio.
MAX_SIDE = 1 << 16
#: Of width over height.
MIN_RATIO, MAX_RATIO = 1e-3, 1e3
Side = Annotated[int, Field(gt=0, le=MAX_SIDE)]
Size = tuple[int, int]
Decimals = Annotated[int, Field(ge=1, le=6)]

Filter = Literal["bicubic", "bilinear", "lanczos", "area"]
Library = Literal["torch", "pillow", "opencv"]
#: The filters whose arithmetic is a library's, each with whether it is antialiased.
FILTERS: Mapping[Library, Mapping[Filter, tuple[bool, ...]]] = {
    "torch": {"bicubic": (True, False), "bilinear": (True, False)},
    "pillow": {"bicubic": (True,), "bilinear": (True,), "lanczos": (True,)},
    "opencv": {"bilinear": (False,), "area": (True,)},
}
#: The library of filters that only one has.
_ONLY: Mapping[Filter, Library] = {"lanczos": "pillow", "area": "opencv"}


class ResizeConfig(GrownSection):
    """How a picture gets its bucket's size, for latents that agree with those of another program."""

    LATER: ClassVar = frozenset({"square"})

    filter: Filter = Field(
        default="bicubic",
        description="The filter. `area` only reduces, so `enlarge` names the filter that enlarges.",
    )
    enlarge: Literal["bicubic", "bilinear", "lanczos"] | None = Field(
        default=None, description="The filter of pictures that are enlarged; omitted: `filter`."
    )
    library: Library = Field(
        default="torch",
        description="Whose arithmetic bicubic and bilinear follow to the last bit; lanczos is always "
        "Pillow's, and area OpenCV's.",
    )
    antialias: bool = Field(
        default=True,
        description="Whether the filter is widened where it reduces. Pillow always does, OpenCV's bilinear "
        "never.",
    )
    align_corners: bool = Field(
        default=False,
        description="torch's bilinear and bicubic: the corners' centres stay in place.",
    )
    fit: Literal["cover", "stretch", "crop_first", "box", "twice"] = Field(
        default="cover",
        description="cover: resized until it covers the bucket, then cropped; stretch: the shape is not "
        "kept; crop_first: cropped to the bucket's shape in whole pixels, then resized; box: the same to "
        "fractions of a pixel, as Pillow's ImageOps.fit does; twice: stretched to the bucket, then "
        "resized from that until it has the source's shape and covers the bucket, then cropped, as "
        "SimpleTuner does.",
    )
    rounding: Literal["nearest", "half_up", "floor"] = Field(
        default="nearest",
        description="How fit: cover rounds the resized size; nearest takes halves to even numbers.",
    )
    square: Side | None = Field(
        default=None,
        description="With fit: twice, and a bucket as high as wide: the side that is covered in place of "
        "the bucket's. A picture that is narrower than the bucket then is stretched to it.",
    )

    @model_validator(mode="after")
    def _sound(self) -> Self:
        names: list[Filter] = [self.filter, *([self.enlarge] if self.enlarge else [])]
        for name in dict.fromkeys(names):
            library = self.library_of(name)
            known = FILTERS[library].get(name)
            if known is None:
                raise ValueError(
                    f"{library} has no filter {name} here; it has {', '.join(FILTERS[library])}"
                )
            if name not in _ONLY and self.antialias not in known:
                word = "antialiased" if known[0] else "not antialiased"
                raise ValueError(
                    f"{library}'s {name} is always {word}: set antialias: {str(known[0]).lower()}"
                )
        if self.filter == "area" and (self.enlarge is None or self.fit != "cover"):
            raise ValueError("`filter: area` needs `fit: cover`, and an `enlarge` such as lanczos")
        if self.fit == "box" and self.library_of(self.filter) != "pillow":
            raise ValueError("`fit: box` is Pillow's: set library: pillow")
        if self.square and self.fit != "twice":
            raise ValueError("`square` is for `fit: twice`")
        if self.align_corners and self.library != "torch":
            raise ValueError("`align_corners` is torch's: set library: torch")
        return self

    def library_of(self, name: Filter) -> Library:
        """Return the library whose arithmetic a filter follows."""
        return _ONLY.get(name, self.library)

    def in_words(self) -> str:
        """Return the settings as the recipe and the plan show them."""
        parts = [f"{self.filter} of {self.library_of(self.filter)}"]
        if self.enlarge:
            parts.append(f"{self.enlarge} of {self.library_of(self.enlarge)} where it enlarges")
        parts.append("antialiased" if self.antialias else "not antialiased")
        parts += ["corners aligned"] if self.align_corners else []
        parts.append(f"fit {self.fit}")
        if self.fit == "cover":
            parts.append(f"sizes rounded {self.rounding}, centre crop")
        if self.square:
            parts.append(f"squares cover {self.square}")
        return ", ".join(parts)


class BucketsConfig(GrownSection):
    """Sizes by aspect ratio, all of about one area; or a list of sizes."""

    LATER: ClassVar = frozenset({"sizes", "nearest", "ratio_of", "ratio_decimals", "square"})

    area: Annotated[int, Field(gt=0, le=MAX_SIDE**2)] | None = Field(
        default=None,
        description="About how many pixels a frame has, such as 345600 for 480x720. Give this, "
        "`multiple` and `aspect_ratios`; or `sizes`.",
    )
    multiple: Side | None = Field(
        default=None, description="Heights and widths are multiples of this."
    )
    aspect_ratios: Annotated[list[float | str], Field(min_length=1)] | None = Field(
        default=None,
        description="Width over height, 0.001 to 1000: numbers, or text such as '16:9'. Omitted with "
        "`ratio_decimals`: each source's own. With `sizes` and `ratio_of: aspect_ratio`: one for each "
        "size.",
    )
    sizes: Annotated[list[tuple[Side, Side]], Field(min_length=1)] | None = Field(
        default=None, description="[height, width] of every bucket."
    )
    nearest: Literal["log", "difference"] = Field(
        default="log",
        description="What is compared to find a source's bucket: the logarithms of width over height, or "
        "these themselves. Of two as near, the first is taken.",
    )
    ratio_of: Literal["size", "aspect_ratio"] = Field(
        default="size",
        description="With which ratio a source's is compared: that of the rounded size, or the one in "
        "aspect_ratios.",
    )
    ratio_decimals: Decimals | None = Field(
        default=None, description="The source's ratio is rounded to so many decimals first."
    )
    square: Side | None = Field(
        default=None,
        description="With each source's own ratio: the side of buckets that are as high as wide, or are so "
        "with their ratio rounded to `ratio_decimals`; omitted: as computed.",
    )

    @field_validator("aspect_ratios")
    @classmethod
    def _parse_ratios(cls, ratios: list[float | str] | None) -> list[float | str] | None:
        for ratio in ratios or ():
            aspect_ratio(ratio)
        return ratios

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.square is not None and (self.sizes or self.aspect_ratios):
            raise ValueError("`square` is for each source's own ratio")
        if self.sizes is not None:
            self._check_sizes(self.sizes)
            return self
        missing = [n for n in ("area", "multiple") if getattr(self, n) is None]
        if self.aspect_ratios is None and self.ratio_decimals is None:
            missing.append("aspect_ratios")
        if missing:
            raise ValueError(
                f"needs {', '.join(missing)}. Give area, multiple and aspect_ratios, or sizes"
            )
        return self

    def _check_sizes(self, sizes: list[tuple[int, int]]) -> None:
        has_ratios = self.ratio_of == "aspect_ratio"
        if self.area is not None or self.multiple is not None:
            raise ValueError("`sizes` stand by themselves: remove area and multiple")
        if (self.aspect_ratios is not None) != has_ratios:
            raise ValueError("`aspect_ratios` beside `sizes` go with `ratio_of: aspect_ratio`")
        if self.aspect_ratios is not None and len(self.aspect_ratios) != len(sizes):
            raise ValueError(
                f"there are {len(self.aspect_ratios)} aspect_ratios for {len(sizes)} sizes"
            )

    def sizes_by_ratio(self) -> list[tuple[float, Size]]:
        """Return the (height, width) of every bucket with the ratio that sources are compared with.

        In the order of the configuration, each size once. Empty if each source has its own ratio.
        """
        sizes = self.sizes or [
            self._size_at(r) for r in map(aspect_ratio, self.aspect_ratios or ())
        ]
        if self.ratio_of == "aspect_ratio":
            return list(zip(map(aspect_ratio, self.aspect_ratios or ()), sizes, strict=True))
        return [(width / height, (height, width)) for height, width in dict.fromkeys(sizes)]

    def all_sizes(self) -> list[Size]:
        """Return the (height, width) of every bucket, in the order of the configuration.

        If each source has its own ratio, squares stand for all: the steps between sizes are `multiple`.
        """
        if sizes := [size for _, size in self.sizes_by_ratio()]:
            return list(dict.fromkeys(sizes))
        assert self.multiple is not None
        edge = self._size_at(1.0)[0]
        squares = dict.fromkeys([self.square or edge, edge, edge + self.multiple])
        return [(side, side) for side in squares]

    def choose(self, height: int, width: int) -> Size:
        """Return the (height, width) of the bucket of a source that is shown as height x width."""
        ratio = width / height
        if self.ratio_decimals is not None:
            ratio = round(ratio, self.ratio_decimals) or 10.0**-self.ratio_decimals
        if not self._choices:
            size = self._size_at(ratio)
            is_square = round(size[1] / size[0], self.ratio_decimals) == 1.0
            return (self.square, self.square) if self.square and is_square else size
        return nearest_size(self._choices, ratio, self.nearest)

    @functools.cached_property
    def _choices(self) -> list[tuple[float, Size]]:
        """What `sizes_by_ratio` gives: each of millions of sources is compared with it."""
        return self.sizes_by_ratio()

    def _size_at(self, ratio: float) -> Size:
        assert self.area is not None
        assert self.multiple is not None
        exact = ((self.area / ratio) ** 0.5, (self.area * ratio) ** 0.5)
        height, width = (max(1, round(x / self.multiple)) * self.multiple for x in exact)
        return height, width


def nearest_size(
    choices: Sequence[tuple[float, Size]], ratio: float, by: Literal["log", "difference"]
) -> Size:
    """Return the size whose ratio is nearest; the first of those as near."""
    if by == "difference":
        return min(choices, key=lambda choice: abs(choice[0] - ratio))[1]
    return min(choices, key=lambda choice: abs(math.log(choice[0]) - math.log(ratio)))[1]


def aspect_ratio(ratio: float | str) -> float:
    """Return width over height of `1.78` or `16:9`, MIN_RATIO to MAX_RATIO; raises ValueError."""
    parts = str(ratio).split(":")
    try:
        width, height = (float(parts[0]), float(parts[1]) if len(parts) == 2 else 1.0)
    except ValueError:
        width = height = 0.0
    if len(parts) > 2 or not (0 < width < math.inf and 0 < height < math.inf):
        raise ValueError(f"{ratio!r} is not an aspect ratio; write 1.78 or '16:9'")
    # Compared as products: the quotient of two floats may be no float.
    if not MIN_RATIO * height <= width <= MAX_RATIO * height:
        raise ValueError(f"{ratio!r} is no aspect ratio of {MIN_RATIO:g} to {MAX_RATIO:g}")
    return width / height
