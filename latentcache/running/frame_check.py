"""Whether a clip was decoded from the frames that its values per frame were cut to."""

from __future__ import annotations

from collections.abc import Sequence

from latentcache.core.records import Clip
from latentcache.errors import ClipError
from latentcache.format.per_frame import FRAME, PER_FRAME


def check_frame_numbers(clip: Clip, decoded: Sequence[int]) -> None:
    """Raise ClipError if values per frame are of other frames than those that were decoded.

    So it is where a table says the rate of a source, which is not probed then, and its frames come at
    other times.
    """
    planned = (clip.keep.get(PER_FRAME) or {}).get(FRAME)
    if planned is None or list(planned) == list(decoded):
        return
    first = next(n for n, pair in enumerate(zip(planned, decoded, strict=True)) if len({*pair}) > 1)
    raise ClipError(
        "frame_times",
        f"sampled frame {first} is frame {decoded[first]} of the source, and values per frame were cut to "
        f"frame {planned[first]}: the table's frames and fps are not the file's. Correct them, or leave "
        "them empty to have the source probed",
    )
