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

from latentcache.core.dtypes import Array
from latentcache.core.records import RETIRED, Clip, ShardReport
from latentcache.core.threads import DaemonPool
from latentcache.decoders.pool import DecodePool
from latentcache.errors import ClipError, EncoderError
from latentcache.format.fields.commit import Sample, adopt_field_shard, commit_field_shard
from latentcache.format.fields.manifest import FieldManifest
from latentcache.planning.fields.inputs import Texts
from latentcache.planning.fields.planned import FieldPart, FieldShard
from latentcache.running.abandoning import abandon
from latentcache.running.failure_policy import OF_CLIP
from latentcache.running.field_report import joined
from latentcache.running.worker import WorkerSpec

INPUT_SHA_DIGITS = 32


@dataclass
class Asked:
    """What was asked for of a clip, in the order in which it was, and is not taken yet.

    identity: of the files that it is of. error: why there is nothing to wait for.
    """

    identity: str = ""
    futures: list[Future[Any]] = field(default_factory=list)
    error: ClipError | None = None

    def take(self) -> Any:
        """Wait for the next result, which is the caller's from then on. Raises what the future raises."""
        result = self.futures[0].result()
        del self.futures[0]
        return result


@dataclass(frozen=True, kw_only=True)
class Made:
    """A clip's arrays as they are stored; tokens: of the first, None without an axis of them."""

    arrays: Sequence[Array]
    tokens: int | None = None
    lost_tokens: int = 0


class ClipWorker(abc.ABC):
    """Makes a field of clips' files; thread-safe."""

    def __init__(self, spec: WorkerSpec, field: FieldManifest, pool: DecodePool) -> None:
        self._spec, self._field, self._pool = spec, field, pool
        self._submitting = threading.Lock()
        self._encoding = DaemonPool(1, name="encode")
        self.clips_done = 0

    @abc.abstractmethod
    def ask(self, clips: Sequence[Clip], paths: Sequence[Texts]) -> list[Asked]:
        """Ask for what some clips need, all of them before the first is waited for. paths: of each clip."""

    @abc.abstractmethod
    def make(self, asked: Asked) -> Made:
        """Wait for what was asked for of a clip, and return what is stored of it. Raises ClipError."""

    def encode_shard(self, shard: FieldShard) -> ShardReport:
        """Encode and commit the missing versions of a shard; what another run has committed is adopted."""
        return joined([self._encode_part(shard, part) for part in shard.parts])

    def _encode_part(self, shard: FieldShard, part: FieldPart) -> ShardReport:
        manifest, storage, place = self._spec.manifest, self._spec.storage, shard.shard.id
        adopted = adopt_field_shard(storage, manifest, self._field, part.version, place)
        if adopted is not None:
            self.clips_done += len(part.rows)
            return adopted
        with self._submitting:
            asked = self._ask(shard, part)
            encoding = self._encoding.submit(self._samples, shard, part, asked)
        samples, encode_s = encoding.result()
        report = commit_field_shard(storage, manifest, self._field, part.version, place, samples)
        return replace(report, encode_s=encode_s)

    def _ask(self, shard: FieldShard, part: FieldPart) -> dict[int, Asked]:
        """Return what was asked for of each row that is not retired."""
        paths = dict(zip(part.rows, part.texts or [()] * len(part.rows), strict=True))
        rows = [row for row in part.rows if row not in shard.shard.retired]
        clips = [shard.shard.clips[row] for row in rows]
        return dict(zip(rows, self.ask(clips, [paths[row] for row in rows]), strict=True))

    def _samples(
        self, shard: FieldShard, part: FieldPart, asked: dict[int, Asked]
    ) -> tuple[list[Sample], float]:
        """Return what became of each clip, and the time that it took."""
        started = time.perf_counter()
        try:
            samples = [self._sample(shard.shard.clips[row], row, asked) for row in part.rows]
        finally:
            for left in asked.values():
                abandon(left.futures)
        return samples, time.perf_counter() - started

    def _sample(self, clip: Clip, row: int, asked: dict[int, Asked]) -> Sample:
        sample = Sample(key=clip.key, row=row, choice=0)
        if row not in asked:
            return sample.failed(str(RETIRED.reason), RETIRED.message)
        of_clip = asked.pop(row)
        sample = replace(sample, input_sha=self._sha(clip, of_clip.identity))
        try:
            if of_clip.error is not None:
                raise of_clip.error
            with torch.inference_mode():
                made = self.make(of_clip)
        except OF_CLIP as error:
            return sample.failed(error.reason, str(error))
        finally:
            abandon(of_clip.futures)
            self.clips_done += 1
        return replace(sample, **vars(made))

    def _sha(self, clip: Clip, identity: str) -> str:
        text = f"{clip.identity} {clip.start} {self._field.recipe.get('of')} {identity}"
        return hashlib.sha256(text.encode()).hexdigest()[:INPUT_SHA_DIGITS]

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
