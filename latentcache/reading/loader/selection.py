"""What a loader takes from one snapshot: which samples, which columns, and how many latent frames."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from latentcache.core.arguments import list_of_names
from latentcache.core.records import Bucket
from latentcache.errors import ConfigError, did_you_mean
from latentcache.reading.cache import Cache
from latentcache.reading.loader.clip_weights import BucketRepeats, ClipWeights
from latentcache.reading.loader.fields import LoaderFields
from latentcache.reading.loader.filters import Where, choose
from latentcache.reading.loader.runs import Place, Runs, make_runs
from latentcache.reading.order.epoch import Batch, BucketShards
from latentcache.reading.order.philox import Int64
from latentcache.reading.views.adapt import AnyView, latent_frames
from latentcache.reading.views.honest import check_long_enough
from latentcache.reading.views.starts import Run


class Rows(NamedTuple):
    """Ok rows of a shard, their places in a batch, and which of its clip's samples each is.

    visits: what takes the epoch's place in what is drawn for each: how often the clip has come before. It
    is the epoch, unless clips have weights.
    following: of each the clips that follow it, as far as a sample may reach; empty if a view has no run.
    """

    rows: list[int]
    where: list[int]
    numbers: list[int]
    visits: list[int]
    following: list[list[Place]]


class ShardMap:
    """A snapshot's chosen samples as arrays for `order`, and the way back from its numbers.

    where: what chooses them, or None for all ok clips. fields: those that a clip must have; left_out: how
    many clips lack each, of those that `where` keeps. columns: of a batch besides its latents; None
    for key, caption and those kept from the corpus. frames: of a clip at most; values per frame are cut,
    too. view: what makes samples of clips, or None. weights: how often clips come, or None for once.
    Raises ConfigError for an unknown column, or where the view makes no sense.

    shards: of each bucket, what an epoch has; of a mean one, if clips have weights.
    """

    def __init__(
        self,
        cache: Cache,
        where: Where | None = None,
        columns: Sequence[str] | None = None,
        fields: LoaderFields | None = None,
        frames: int | None = None,
        view: AnyView | None = None,
        weights: ClipWeights | None = None,
    ) -> None:
        self.cache, self.fields, self.frames, self.view = cache, fields, frames, view
        self.columns = None if columns is None else _check_columns(cache, columns)
        self._chosen = None if where is None else choose(cache, where)
        #: The condition, if it keeps no clip at all.
        self.empty_where = where
        if self._chosen is None or any(c.num_chosen.any() for c in self._chosen.values()):
            self.empty_where = None
        self.left_out: Mapping[str, int] = {}
        if fields is not None:
            self._chosen, self.left_out = fields.choose(cache, self._chosen)
        self._repeats: dict[str, BucketRepeats] = {}
        if weights is not None:
            self._repeats = weights.of(cache, self._chosen)
        self.names: list[str] = []
        self._numbers: list[Int64] = []
        self._num_clips: list[Int64] = []
        sizes = []
        for name in cache.buckets:
            numbers, num_samples = cache.shards(name)
            if self._chosen is not None and name in self._chosen:
                num_samples = self._chosen[name].num_chosen
            repeats = self._repeats.get(name)
            if repeats is not None and not repeats.num_samples(numbers.tolist(), None).any():
                continue  # all of its clips have the weight 0
            if num_samples.sum():
                sizes.append(cache.empty(name, 1).nbytes)
                self.names.append(name)
                self._numbers.append(numbers)
                self._num_clips.append(num_samples)
        self.shapes = [cache.buckets[name].shape for name in self.names]
        #: Samples per clip of each bucket.
        self.per_clip = [1] * len(self.names)
        self._sample_bytes = sizes
        #: What contiguous parts the view takes, if not every clip gives as many.
        self.run: Run | None = None
        self._runs: dict[str, Runs] = {}
        if view is not None and self.names:
            self._apply(view)
        self.shards = self._shards(None)
        #: The epoch that was asked for last, and what it has.
        self._last: tuple[int, list[BucketShards]] | None = None

    def _apply(self, view: AnyView) -> None:
        """Count the samples that a view makes of clips."""
        num_frames = [latent_frames(shape) for shape in self.shapes]
        view.check(self.cache.spec, dict(zip(self.names, num_frames, strict=True)))
        self.run = self._run_of(view, num_frames)
        num_next = [self.run.num_next(num) if self.run else 0 for num in num_frames]
        self._sample_bytes = [
            max(1, size * view.most_frames(num, more) // num)
            for size, num, more in zip(self._sample_bytes, num_frames, num_next, strict=True)
        ]
        if self.run is None:
            self.per_clip = [view.count(num) for num in num_frames]
            return
        self._runs = make_runs(self.run, view, self.cache, self._chosen)
        self._num_clips = [self._runs[name].num_samples for name in self.names]
        short = [n for n, num in enumerate(self._num_clips) if not num.sum()]
        if short:
            names = [self.names[n] for n in short]
            raise ConfigError(
                f"{view.name}: it takes {self.run.span} latent frames of a clip, or of it and the next "
                f"ones, but those of bucket {names[0]} have only {num_frames[short[0]]} each, and none "
                f"goes on for long enough{' in one segment' if self.run.segment else ''}. Take fewer, or "
                f'leave short clips out: where="bucket not in ({str(names)[1:-1]})".'
            )

    def _run_of(self, view: AnyView, num_frames: Sequence[int]) -> Run | None:
        """Return what contiguous parts the view takes. Raises ConfigError if clips have weights, too."""
        run = view.run(self.cache)
        if run is None or not self._repeats:
            return run
        if run.is_asked_for:
            raise ConfigError(
                f"{view.name}: windows that go on in the next clip, or end with a segment, are not counted "
                "by clips, and this loader takes clips by their weights. Give run_on=False and "
                "segment=None, or clip_weight=None."
            )
        check_long_enough(view.name, run.span, dict(zip(self.names, num_frames, strict=True)))
        return None

    def __len__(self) -> int:
        """Return how many samples there are, each clip taken once."""
        return sum(
            int(num.sum()) * count
            for num, count in zip(self._num_clips, self.per_clip, strict=True)
        )

    @property
    def is_weighted(self) -> bool:
        """Whether clips have weights, so that epochs differ."""
        return bool(self._repeats)

    def shards_in(self, epoch: int) -> list[BucketShards]:
        """Return what one of the cache's epochs has of each bucket."""
        if not self._repeats:
            return self.shards
        known = self._last
        if known is None or known[0] != epoch:
            known = self._last = epoch, self._shards(epoch)
        return known[1]

    def _shards(self, epoch: int | None) -> list[BucketShards]:
        found = []
        for n, name in enumerate(self.names):
            num = self._num_clips[n]
            if name in self._repeats:
                num = self._repeats[name].num_samples(self._numbers[n].tolist(), epoch)
            found.append(
                BucketShards(num_samples=num * self.per_clip[n], sample_bytes=self._sample_bytes[n])
            )
        return found

    @property
    def digest(self) -> str | None:
        """SHA-256 of which samples `where` chose; None if all are taken."""
        if self._chosen is None:
            return None
        parts = (chosen.digest() for _, chosen in sorted(self._chosen.items()))
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def numbers(self) -> Int64:
        """Return the numbers in the cache of the chosen samples, int64, in its order."""
        found, first = [np.empty(0, np.int64)], 0
        for name in self.cache.buckets:
            shards, num_ok = self.cache.shards(name)
            chosen = None if self._chosen is None else self._chosen.get(name)
            starts = first + np.cumsum(num_ok) - num_ok
            for shard, start, num in zip(shards.tolist(), starts, num_ok, strict=True):
                found.append(start + (np.arange(num) if chosen is None else chosen.rows(shard)))
            first += int(num_ok.sum())
        return np.concatenate(found)

    def places(self, batch: Batch, epoch: int) -> dict[int, Rows]:
        """Return each shard of a batch of an epoch with its rows and their places in the batch."""
        places: dict[int, Rows] = {}
        for n, (at, sample) in enumerate(zip(batch.shards, batch.rows, strict=True)):
            shard = int(self._numbers[batch.bucket][at])
            found = places.setdefault(shard, Rows([], [], [], [], []))
            row, number, following = self._find(batch.bucket, at, sample)
            found.rows.append(row)
            found.where.append(n)
            found.numbers.append(number)
            found.visits.append(epoch)
            found.following.append(following)
        name = self.names[batch.bucket]
        if name in self._repeats:
            for shard, found in places.items():
                rows, visits = self._repeats[name].samples(shard, epoch, np.array(found.rows))
                places[shard] = found._replace(rows=rows.tolist(), visits=visits.tolist())
        if self._chosen is not None and not self._runs:
            chosen = self._chosen[name]
            for shard, found in places.items():
                places[shard] = found._replace(rows=chosen.rows(shard)[found.rows].tolist())
        return places

    def _find(self, bucket: int, at: int, sample: int) -> tuple[int, int, list[Place]]:
        """Return a sample's row among those chosen, its number in the clip, and the clips that follow.

        With runs the row is among all ok ones.
        """
        if self._runs:
            return self._runs[self.names[bucket]].find(at, sample)
        row, number = divmod(sample, self.per_clip[bucket])
        return row, number, []


def _check_columns(cache: Cache, columns: Sequence[str]) -> list[str]:
    names = list_of_names("columns", columns)
    for name in names:
        if name not in cache.batch_columns:
            raise ConfigError(
                f"columns: the sample tables have no {name!r}."
                f"{did_you_mean(name, cache.batch_columns)} They have: "
                f"{', '.join(cache.batch_columns)}"
            )
    return names


def prefix_cuts(cache: Cache, frames: int | None) -> dict[int, int]:
    """Return how many latent frames stand for a clip's first `frames`, by how many are stored.

    Only for buckets with longer clips; shorter ones are taken whole. Raises ConfigError if the encoder's
    latents of a clip's first frames are not those of the shorter clip, or if no latent ends at `frames`.
    """
    if frames is None:
        return {}
    longer = {
        info.name: info.pixel_frames
        for info in cache.manifest.buckets
        if Bucket.parse(info.name).frames > frames
    }
    spec = cache.spec
    if longer and (spec.exactness != "prefix_exact" or (spec.ids and spec.ids.scales)):
        raise ConfigError(
            f"frames {frames}: {spec.model_class} latents cannot be cut, because those of a clip's "
            f"first frames depend on the later ones ({spec.exactness}): a part of them would be the "
            "latents of no clip. Encode a cache with clips.frames of that length."
        )
    cuts = [(len(ranges), _num_within(name, ranges, frames)) for name, ranges in longer.items()]
    if len(dict(cuts)) < len(set(cuts)):
        raise ConfigError(
            f"frames {frames}: buckets with equally many latent frames would be cut differently: "
            f"{sorted(longer)}"
        )
    return dict(cuts)


def _num_within(bucket: str, pixel_frames: Sequence[tuple[int, int]], frames: int) -> int:
    ends = [end for _, end in pixel_frames]
    if frames not in ends:
        near = sorted(ends, key=lambda end: abs(end - frames))[:2]
        raise ConfigError(
            f"frames {frames}: no latent frame of bucket {bucket} ends there, and latent frames cannot "
            f"be split. Use {' or '.join(map(str, sorted(near)))}."
        )
    return operator.indexOf(ends, frames) + 1
