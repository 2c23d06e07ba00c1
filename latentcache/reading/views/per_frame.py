"""Lists with one entry per frame, such as actions and segments, cut like the latents are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from latentcache.errors import ConfigError
from latentcache.reading.views.starts import by_clip

if TYPE_CHECKING:
    from latentcache.reading.views.protocol import Pick, Record


def per_frame(record: Record, name: str, frames: Sequence[int]) -> Any:
    """Return a column's values at latent frames: a tensor [n], or a list if they are no numbers.

    Those of `corpus.per_frame` are tensors [n, ...] already. Else the list has an entry per frame of the
    clip, per frame of its source (if every frame is sampled), or per latent frame. Where a latent frame
    stands for several frames, there is a list of n lists. Frames from the clip's last on are of those that
    follow it.
    """
    if any(frame >= record.num_frames for frame in frames):
        return _of_several(record, name, frames)
    values, t = _values(record, name), record.num_frames
    if len(values) == t:
        return _tensor([values[frame] for frame in frames])
    num = record.bucket.frames
    own = values if len(values) == num else _of_source(record, name, values)
    ranges = [record.spec.pixel_frames(frame, num) for frame in frames]
    if num == t:
        return _tensor([own[start] for start, _ in ranges])
    parts = [own[start:stop] for start, stop in ranges]
    return parts if isinstance(own, torch.Tensor) else list(map(list, parts))


def _of_several(record: Record, name: str, frames: Sequence[int]) -> Any:
    clips = (record, *record.following)
    parts = [
        per_frame(clips[clip], name, some) for clip, some in by_clip(frames, record.num_frames)
    ]
    if all(isinstance(part, torch.Tensor) for part in parts):
        return torch.cat(parts)
    return [value for part in parts for value in part]


def picked_values(record: Record, name: str, pick: Pick) -> torch.Tensor | None:
    """Return the values [T, ...] of a column of `corpus.per_frame` at all pixel frames of what was picked.

    None where a clip of it has no values.
    """
    if pick.frames is None:
        return record.column(name)  # type: ignore[no-any-return]
    clips, parts = (record, *record.following), []
    for clip, frames in by_clip(pick.frames, record.num_frames):
        if (values := clips[clip].column(name)) is None:
            return None
        ranges = [record.spec.pixel_frames(frame, record.bucket.frames) for frame in frames]
        parts += [values[start:stop] for start, stop in ranges]
    return torch.cat(parts)


def _values(record: Record, name: str) -> Any:
    values = record.column(name)
    if isinstance(values, torch.Tensor):
        return values
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ConfigError(
            f"per_frame: {name} of clip {record.key!r} is {values!r}, which is no list with an entry per "
            "frame. Name a column that `corpus.keep` keeps and that has a list in every row."
        )
    return values


def _of_source(record: Record, name: str, values: Any) -> Any:
    """Return a clip's part of a list that has an entry for each frame of its source."""
    start, num, fps = record.column("start"), record.bucket.frames, record.column("fps")
    if record.sampling == "spread":
        raise ConfigError(
            f"per_frame: {name} of clip {record.key!r} has {len(values)} entries, but the clip has {num} "
            "frames, which `clips.sampling: spread` spread over its source: which entry belongs to which "
            "frame is unknown. Name the column in corpus.per_frame when the cache is made, which cuts it "
            "to each clip's own frames."
        )
    if fps is None and start is not None and len(values) >= start + num:
        return values[start : start + num]
    resampled = "" if fps is None else f", and clips.fps ({fps}) leaves out frames of the source"
    raise ConfigError(
        f"per_frame: {name} of clip {record.key!r} has {len(values)} entries, but the clip has {num} "
        f"frames from number {start} on, and {record.num_frames} latent frames{resampled}: which entry "
        "belongs to which frame is unknown. Keep lists with an entry per frame of the clip."
    )


def _tensor(values: list[Any]) -> Any:
    if values and isinstance(values[0], torch.Tensor):
        return torch.stack(values)
    if values and all(isinstance(value, bool | int | float) for value in values):
        return torch.tensor(values)
    return values
