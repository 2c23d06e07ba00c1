"""One decode for latents and fields of frames: the worker that makes both of the same pixels.

Fields come second. Whatever goes wrong with one is left to the run that the field has afterwards, which
decodes for itself, tries again and records what fails; latents are as they would be without fields.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from latentcache.config.fields import RawField, VisualField
from latentcache.core.dtypes import Array
from latentcache.core.fields import given_frames
from latentcache.core.records import Clip, Shard, ShardReport
from latentcache.errors import ClipError, EncoderError
from latentcache.format.fields.commit import Sample, commit_field_shard
from latentcache.format.fields.manifest import FieldManifest
from latentcache.planning.fields.planned import FieldPart
from latentcache.running.abandoning import abandon
from latentcache.running.attempt import Failed, attempt
from latentcache.running.failure_policy import OF_CLIP
from latentcache.running.field_report import joined
from latentcache.running.frame_fields import FrameField, Frames, Pixels, frames_of, taken
from latentcache.running.worker import ShardWorker, WorkerSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SharedField:
    """A field that is made of the clips' own frames."""

    field: FieldManifest
    settings: RawField | VisualField


@dataclass(frozen=True, kw_only=True)
class SharedShard:
    """A shard of the latents, and what is missing of fields in it, by their names."""

    shard: Shard
    parts: Mapping[str, Sequence[FieldPart]]


@dataclass(frozen=True, kw_only=True)
class SharedSpec(WorkerSpec):
    """What a worker of latents and fields needs."""

    fields: tuple[SharedField, ...]

    def build(self, device: torch.device) -> SharedWorker:
        """Build the worker. Raises what the latents' encoder raises; those of fields are loaded later."""
        return SharedWorker(self, device)


class SharedWorker:
    """Encodes shards of latents, and fields of the pixels that these were decoded to; thread-safe.

    An encoder of a field is loaded when the first shard needs it: a worker starts without.
    """

    def __init__(self, spec: SharedSpec, device: torch.device) -> None:
        self.spec, self._device = spec, device
        self.fields = {shared.field.name: shared for shared in spec.fields}
        self.latents = ShardWorker(spec, device)
        self._makers: dict[str, FrameField | Failed] = {}
        self._said: set[str] = set()
        self.num_samples = 0

    def encode_shard(self, shard: Shard | SharedShard) -> ShardReport:
        """Encode and commit a shard of latents, then those of fields. What is committed is adopted."""
        if isinstance(shard, Shard):
            return self.latents.encode_shard(shard)
        making = _Making(self, shard)
        try:
            report = self.latents.encode_shard(shard.shard, making)
        except (EncoderError, MemoryError, torch.OutOfMemoryError):
            self._let_go()
            raise
        return report if report.committed_before else replace(report, fields=making.finish())

    def maker(self, name: str) -> FrameField | Failed:
        """Return what makes a field, loaded on first use; on the encoder's thread."""
        if name not in self._makers:
            shared = self.fields[name]
            build = partial(
                FrameField,
                self.spec,
                shared.field,
                shared.settings,
                self._device,
                self.latents.encoder,
            )
            self._makers[name] = attempt(build)
        return self._makers[name]

    def warn(self, name: str, error: str) -> None:
        """Say once why a field is not made here."""
        text = f"the field {name} is left to a run of its own, after the latents: {error}"
        if text not in self._said:
            self._said.add(text)
            log.warning("%s", text)

    def _let_go(self) -> None:
        """Give up the fields: their encoders may hold the memory that the latents' encoder lacked."""
        self._makers = {
            name: Failed(error="the latents could not be encoded") for name in self.fields
        }
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def give_back(self) -> None:
        """See `ShardWorker.give_back`."""
        self.latents.give_back()

    @property
    def clips_done(self) -> int:
        """Clips whose latents are done."""
        return self.latents.clips_done

    @property
    def num_steps(self) -> int:
        """See `Worker.num_steps`."""
        return self.latents.num_steps + self.num_samples

    def close(self) -> None:
        """See `ShardWorker.close`."""
        self.latents.close()


class _Making:
    """The fields of one shard while they are made: an onlooker of the shard's encoding."""

    def __init__(self, worker: SharedWorker, shared: SharedShard) -> None:
        self._worker, self._shard = worker, shared.shard
        self._parts = dict(shared.parts)
        self._of = {name: worker.fields[name].settings.of for name in shared.parts}
        self._rows = {
            name: [row for part in parts for row in part.rows]
            for name, parts in shared.parts.items()
        }
        self._kept = Kept(shared.shard, self._of.values())
        self._samples: dict[str, dict[int, Sample]] = {name: {} for name in shared.parts}
        self._encode_s = dict.fromkeys(shared.parts, 0.0)
        self._failed: dict[str, Failed] = {}

    def see(self, row: int, first: int, pixels: Array) -> None:
        """Keep the frames that fields need."""
        self._kept.add(row, first, pixels)

    def done(self) -> None:
        """Make the fields of all clips that were decoded; on the encoder's thread."""
        for name, of in self._of.items():
            self._make(name, {row: self._kept.pixels(row, of) for row in self._rows[name]})
        self._kept.clear()

    def finish(self) -> dict[str, ShardReport]:
        """Make the fields of clips that could not be decoded, and commit; in the shard's thread.

        A whole clip that cannot be decoded may have a first frame that can.
        """
        if lacking := self._lacking():
            self._worker.latents.encoding.submit(self._make_rest, self._decode(lacking)).result()
        committed = {name: attempt(partial(self._commit, name)) for name in self._samples}
        for outcome in committed.values():
            if isinstance(outcome, Failed) and outcome.stop is not None:
                raise outcome.stop
        outcomes = {**self._failed, **committed}
        for name, outcome in outcomes.items():
            if isinstance(outcome, Failed):
                self._worker.warn(name, outcome.error)
        return {name: o for name, o in outcomes.items() if not isinstance(o, Failed)}

    def _make(self, name: str, pixels: Mapping[int, Pixels | None]) -> None:
        """Make a field's samples of the rows that have pixels, or are retired."""
        if name in self._failed:
            return
        started = time.perf_counter()
        failed = attempt(partial(self._make_samples, name, pixels))
        self._encode_s[name] += time.perf_counter() - started
        if failed is not None:
            self._failed[name] = failed
            del self._samples[name]

    def _make_samples(self, name: str, pixels: Mapping[int, Pixels | None]) -> Failed | None:
        maker = self._worker.maker(name)
        if isinstance(maker, Failed):
            return maker
        for row, of_clip in pixels.items():
            if of_clip is None and row not in self._shard.retired:
                continue
            self._samples[name][row] = maker.sample(self._shard.clips[row], row, of_clip)
            self._worker.num_samples += 1
        return None

    def _lacking(self) -> list[tuple[int, str]]:
        """Return rows that fields have no sample of, and what the fields are of; each once."""
        return sorted(
            {
                (row, self._of[name])
                for name, samples in self._samples.items()
                for row in self._rows[name]
                if row not in samples
            }
        )

    def _decode(self, wanted: Sequence[tuple[int, str]]) -> dict[tuple[int, str], Pixels]:
        """Decode frames of clips as the fields' own runs do. Not on the encoder's thread.

        That thread takes decoded clips in the order in which they were asked for, and others are ahead.
        """
        pool, sampling = self._worker.latents.pool, self._worker.spec.config.clips.sampling
        asked: list[tuple[Clip, str, Frames]] = []
        for row, of in wanted:
            clip = self._shard.clips[row]
            frames = [pool.decode(part) for part in frames_of(clip, of, sampling)]
            asked.append((clip, of, frames))
        try:
            found = [_waited_for(frames, clip, of) for clip, of, frames in asked]
        finally:
            for *_, frames in asked:
                abandon(frames)
        return dict(zip(wanted, found, strict=True))

    def _make_rest(self, pixels: Mapping[tuple[int, str], Pixels]) -> None:
        for name, of in self._of.items():
            rows = [row for row in self._rows[name] if (row, of) in pixels]
            self._make(name, {row: pixels[row, of] for row in rows})

    def _commit(self, name: str) -> ShardReport:
        spec, samples = self._worker.spec, self._samples[name]
        field, reports = self._worker.fields[name].field, []
        for part in self._parts[name]:
            of_part = [samples[row] for row in part.rows]
            reports.append(
                commit_field_shard(
                    spec.storage, spec.manifest, field, part.version, self._shard.id, of_part
                )
            )
        return replace(joined(reports), encode_s=self._encode_s[name])


def _waited_for(frames: Frames, clip: Clip, of: str) -> Pixels:
    """Wait for frames; what is returned gives them, or raises why there are none."""
    try:
        pixels = taken(frames, clip, of)
    except OF_CLIP as error:
        return partial(_raise, error)
    return lambda: pixels


def _raise(error: ClipError) -> Sequence[Array]:
    raise error


class Kept:
    """Copies of those frames of a shard's clips that fields are made of. ofs: see `given_frames`.

    Of fields of first and last frames that is little; of fields of whole clips it is what they store.
    """

    def __init__(self, shard: Shard, ofs: Iterable[str]) -> None:
        num_frames = shard.bucket.frames
        self._wanted = sorted({n for of in ofs for n in given_frames(of, num_frames)})
        self._num_frames = num_frames
        self._frames: dict[int, Array] = {}
        self._num_kept: dict[int, int] = {}

    def add(self, row: int, first: int, pixels: Array) -> None:
        """Copy what is wanted of a clip's frames [T, H, W, 3] from number `first` on."""
        if row not in self._frames:
            self._frames[row] = np.empty((len(self._wanted), *pixels.shape[1:]), np.uint8)
            self._num_kept[row] = 0
        for place, number in enumerate(self._wanted):
            if first <= number < first + len(pixels):
                self._frames[row][place] = pixels[number - first]
                self._num_kept[row] += 1

    def pixels(self, row: int, of: str) -> Pixels | None:
        """Return what gives a field's frames of a clip; None if the clip was not decoded to its end."""
        if self._num_kept.get(row) != len(self._wanted):
            return None
        frames = self._frames[row]
        if of == "clip":
            return lambda: [frames]
        places = [self._wanted.index(n) for n in given_frames(of, self._num_frames)]
        return lambda: [frames[place : place + 1] for place in places]

    def clear(self) -> None:
        """Let go of all frames but those that were given out."""
        self._frames.clear()
