"""Clips that a layout holds, as they are taken into a cache: what each is, and how its array is read."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from latentcache.core.records import Bucket
from latentcache.core.spec import LatentSpec, Stored
from latentcache.exchange.damage import refuse
from latentcache.storage.folder import Storage

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Record:
    """A clip of a layout. path: of its file; shape, dtype: of what `load` returns, as a cache stores it.

    start_s, end_s: its times in its source, if the layout says them. stamp: of its file, see `stamps`.
    caption_path: of the file that its caption is in, if that is another one. beside: files that must not
    change while it is taken in, as its own and those of `Found.beside`.
    """

    key: str
    source: str
    path: str
    bucket: Bucket
    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], torch.Tensor]
    caption: str | None = None
    caption_path: str | None = None
    beside: tuple[str, ...] = ()
    start: int = 0
    fps: float | None = None
    start_s: float | None = None
    end_s: float | None = None
    stamp: str = ""

    @property
    def text(self) -> str | None:
        """The caption as a table holds it: half a character, as JSON can have it, is no text."""
        return self.caption and self.caption.encode(errors="replace").decode()

    def with_caption(self, caption: str, path: str) -> Record:
        """Return it with a text of another file."""
        return dataclasses.replace(self, caption=caption, caption_path=path)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a layout holds. stored: as in a spec. normalised: its latents are, and a cache's are not.

    origin: how the latents came to be, as far as the layout says it. num_late: further clips, whose files
    came while the folder was being read. beside: files that say what is where in those of the clips.
    notes: what of the folder is left out, a sentence each.
    """

    layout: str
    stored: Stored
    normalised: bool
    records: Sequence[Record]
    origin: Literal["import", "sampler"] = "import"
    num_late: int = 0
    beside: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def identity_of(record: Record, layout: str) -> str:
    """Return what a plan says of a clip's file: a file that changes is another one."""
    return f"import:{layout}:{record.stamp}:{record.path}"


def path_in(identity: str) -> str:
    """Return the path of a file of which `identity_of` says something."""
    return identity.split(":", 3)[-1]


def told_apart(records: Sequence[Record], *longer: Callable[[Record], str]) -> Sequence[Record]:
    """Return clips of which no two have one key, as far as that goes; those that share one get longer ones.

    longer: other keys, tried one after the other; the last is the path of a clip's file without its suffix.
    """
    for key_of in (*longer, _path):
        counts = Counter(record.key for record in records)
        records = [
            record if counts[record.key] == 1 else dataclasses.replace(record, key=key_of(record))
            for record in records
        ]
    return records


def _path(record: Record) -> str:
    return record.path.rpartition(".")[0]


def bucket_from(storage: Storage, path: str, spec: LatentSpec, shape: Sequence[int]) -> Bucket:
    """Return the pixels of a latent [.., t, h, w] of a file: the fewest frames that give its t.

    Raises CorpusError if no clip gives it.
    """
    t, h, w = shape[-3:]
    st, sh, sw = spec.stride
    for frames in range((t - 1) * st + 1, t * st + 1):
        if t > 0 and spec.frame_rule.is_legal(frames):
            return Bucket(frames=frames, height=h * sh, width=w * sw)
    raise refuse(
        storage, path, f"has {t} latent frames, and {spec.model_class} gives so many for no clip"
    )
