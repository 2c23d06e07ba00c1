"""Shards of a field that a worker has in hand: as many as a budget of bytes holds, and always one.

Runners hand out SHARDS_IN_HAND at once. Those that the budget does not hold wait, before anything of them
is decoded or encoded, until another is committed.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from latentcache.core.fields import FieldArray
from latentcache.core.machine import trim_memory
from latentcache.core.records import Bucket
from latentcache.core.spec import ITEM_BYTES, LatentSpec
from latentcache.format.fields.manifest import FieldManifest
from latentcache.format.manifest import Manifest
from latentcache.planning.fields.planned import FieldPart
from latentcache.running.worker import SHARDS_IN_HAND

#: Of arrays before compression, per worker. Three shards of 64 captions of FLUX.2 have 3 GB, one of Cosmos
#: 2.5 has 6.6 GB.
IN_HAND_BYTES = 4 << 30
#: What a shard of so many bytes has freed is given back: the allocator keeps it for each thread.
TRIMMED_BYTES = 64 << 20


class ShardsInHand:
    """What one worker has in hand; thread-safe."""

    def __init__(self) -> None:
        self._held_bytes = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, num_bytes: int) -> Iterator[None]:
        """Wait until a shard of so many bytes has room beside the others, or there is no other.

        What it takes is to be freed when the block is left.
        """
        most_bytes = max(IN_HAND_BYTES, num_bytes)
        with self._changed:
            self._changed.wait_for(lambda: self._held_bytes + num_bytes <= most_bytes)
            self._held_bytes += num_bytes
        try:
            yield
        finally:
            if num_bytes >= TRIMMED_BYTES:
                trim_memory()
            with self._changed:
                self._held_bytes -= num_bytes
                self._changed.notify_all()


def part_bytes(field: FieldManifest, manifest: Manifest, bucket: Bucket, part: FieldPart) -> int:
    """Return the most bytes that the arrays of a shard's part take before compression."""
    texts = part.texts or [()] * len(part.rows)
    num_samples = sum(min(field.choices, max(1, len(of_clip))) for of_clip in texts)
    return num_samples * sample_bytes(field.arrays, bucket, manifest.spec)


def sample_bytes(arrays: Iterable[FieldArray], bucket: Bucket, spec: LatentSpec) -> int:
    """Return the bytes of a sample of a bucket before compression, with all of its padding."""
    return sum(
        math.prod(array.shape_in(bucket, spec)) * ITEM_BYTES[array.dtype] for array in arrays
    )


def most_in_hand(
    arrays: Sequence[FieldArray],
    manifest: Manifest,
    clips: Mapping[Bucket, int],
    choices: int,
) -> tuple[int, int]:
    """Return how many shards a worker has in hand where they are largest, and the bytes of one.

    clips: of each bucket. choices: samples per clip.
    """
    shard_bytes = max(
        (
            min(num_clips, manifest.shard_clips)
            * choices
            * sample_bytes(arrays, bucket, manifest.spec)
            for bucket, num_clips in clips.items()
        ),
        default=0,
    )
    return max(1, min(SHARDS_IN_HAND, IN_HAND_BYTES // max(1, shard_bytes))), shard_bytes
