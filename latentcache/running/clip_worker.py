"""The base of workers that make a field clip by clip from files: what a clip needs is decoded ahead.

Shards overlap as with latents: while one is written, the next is encoded, and the one after that is
decoded.
"""

from __future__ import annotations

import abc
import hashlib
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from latentcache.core.records import RETIRED, Clip
from latentcache.core.threads import DaemonPool
from latentcache.decoders.pool import DecodePool
from latentcache.errors import ClipError, EncoderError
from latentcache.format.fields.commit import Sample
from latentcache.format.fields.manifest import FieldManifest
from latentcache.format.fields.taken import Texts
from latentcache.planning.fields.planned import FieldPart, FieldShard
from latentcache.running.abandoning import abandon
from latentcache.running.failure_policy import OF_CLIP
from latentcache.running.part_worker import PartWorker
from latentcache.running.worker import WorkerSpec

INPUT_SHA_DIGITS = 32


def input_sha(clip: Clip, of: str, identity: str = "") -> str:
    """Return the digest of what a field's sample is made of: frames of a clip, and of other files."""
    text = " ".join(filter(None, (clip.identity, str(clip.start), of, identity)))
    return hashlib.sha256(text.encode()).hexdigest()[:INPUT_SHA_DIGITS]


@dataclass
class Asked:
    """What was asked for of a clip, in the order in which it was, and is not taken yet.

    identity: of the files that it is of, beside the clip's source. texts: that it is encoded with. error:
    why there is nothing to wait for.
    """

    clip: Clip
    identity: str = ""
    texts: Sequence[str] = ()
    futures: list[Future[Any]] = field(default_factory=list)
    error: ClipError | None = None

    def take(self) -> Any:
        """Wait for the next result, which is the caller's from then on. Raises what the future raises."""
        result = self.futures[0].result()
        del self.futures[0]
        return result


class ClipWorker(PartWorker):
    """Makes a field of clips' files; thread-safe."""

    def __init__(self, spec: WorkerSpec, field: FieldManifest, pool: DecodePool) -> None:
        super().__init__(spec, field)
        self._pool = pool
        self._submitting = threading.Lock()
        self._encoding = DaemonPool(1, name="encode")

    @abc.abstractmethod
    def ask(self, clips: Sequence[Clip], texts: Sequence[Texts]) -> list[Asked]:
        """Ask for what some clips need, all of them before the first is waited for.

        texts: of each clip, what the field's columns hold: paths, then texts.
        """

    @abc.abstractmethod
    def make(self, asked: Asked, sample: Sample) -> list[Sample]:
        """Wait for what was asked for of a clip, and return its samples: one, or one of each text.

        sample: what they have in common. Raises ClipError if it has none.
        """

    def make_part(self, shard: FieldShard, part: FieldPart) -> tuple[list[Sample], float]:
        """Ask for what a part's clips need, and make their samples in turn."""
        with self._submitting:
            asked = self._ask(shard, part)
            encoding = self._encoding.submit(self._samples, shard, part, asked)
        return encoding.result()

    def _ask(self, shard: FieldShard, part: FieldPart) -> dict[int, Asked]:
        """Return what was asked for of each row that is not retired."""
        texts = dict(zip(part.rows, part.texts or [()] * len(part.rows), strict=True))
        rows = [row for row in part.rows if row not in shard.shard.retired]
        clips = [shard.shard.clips[row] for row in rows]
        return dict(zip(rows, self.ask(clips, [texts[row] for row in rows]), strict=True))

    def _samples(
        self, shard: FieldShard, part: FieldPart, asked: dict[int, Asked]
    ) -> tuple[list[Sample], float]:
        """Return what became of each clip, and the time that it took."""
        started, samples = time.perf_counter(), list[Sample]()
        try:
            for row in part.rows:
                sample = Sample(key=shard.shard.clips[row].key, row=row, choice=0)
                samples += self._of_clip(sample, asked.pop(row, None))
        finally:
            for left in asked.values():
                abandon(left.futures)
        return samples, time.perf_counter() - started

    def _of_clip(self, sample: Sample, asked: Asked | None) -> list[Sample]:
        if asked is None:
            return [sample.failed(str(RETIRED.reason), RETIRED.message)]
        of = str(self._field.recipe.get("of", ""))
        sample = replace(sample, input_sha=input_sha(asked.clip, of, asked.identity))
        try:
            if asked.error is not None:
                raise asked.error
            with torch.inference_mode():
                return self.make(asked, sample)
        except OF_CLIP as error:
            return [sample.failed(error.reason, str(error))]
        finally:
            abandon(asked.futures)
            self.clips_done += 1

    @property
    def num_steps(self) -> int:
        """See `Worker.num_steps`."""
        return self.clips_done + self._pool.num_steps

    def close(self) -> None:
        """Stop the decoding processes, and the encoder's thread with them."""
        self._pool.close()
        self._encoding.close(None)


def check_own_files(spec: WorkerSpec) -> None:
    """Raise EncoderError for a cache whose clips are another cache's: there are no files to decode."""
    if spec.manifest.provenance.parent is not None:
        raise EncoderError(
            "fields of frames and of sound are made of a corpus's own files, and the clips of this cache "
            "are those of another cache. Add the field to that one."
        )
