"""Caches of very many shards: the order is right, and memory is bounded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from latentcache.reading.cache import open_cache
from latentcache.reading.loader.loader import LatentLoader
from tests.tools.caches import ROOT
from tests.tools.synthetic import write_index


def test_every_clip_of_many_shards_comes_once(tmp_path: Path) -> None:
    write_index(str(tmp_path), {"1x32x32": 7001, "5x32x32": 13_000}, shard_clips=4)
    cache = open_cache(str(tmp_path))
    # There is an index only, and no sample table that might have weights.
    loader = LatentLoader(cache, batch_size=8, pool_bytes=1 << 20, clip_weight=None)
    found = [
        (batch.bucket, shard, row)
        for batch in loader.order.batches(loader.buckets, 0)
        for shard, row in zip(batch.shards, batch.rows, strict=True)
    ]
    expected = {
        (n, shard, row)
        for n, bucket in enumerate(cache.buckets)
        for shard, num_ok in zip(*cache.shards(bucket), strict=True)
        for row in range(num_ok)
    }
    assert len(found) == len(cache) == len(expected)
    assert set(found) == expected
    assert len(json.dumps(loader.state_dict())) < 2000


@pytest.mark.long
def test_a_million_shards_fit_into_a_gigabyte() -> None:
    command = [sys.executable, "benchmarks/million.py"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    at_most = [int(line.split()[-2]) for line in result.stdout.splitlines() if "at most" in line]
    assert max(at_most) < 1024, result.stdout
