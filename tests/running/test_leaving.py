"""A worker that is to end: what it encodes is finished, and what waits for that is let go of."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from latentcache.core.records import ShardReport
from latentcache.running.shard_encoder import ShardEncoder
from latentcache.running.worker import SHARDS_IN_HAND, ShardWorker, WorkerSpec
from tests.tools.caches import make_config, make_corpus
from tests.tools.planned import planned_from

WAIT_S = 120


@pytest.mark.slow
def test_what_is_encoded_is_committed_and_the_rest_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus(tmp_path / "corpus", SHARDS_IN_HAND, frames=5)
    path = make_config(tmp_path, corpus, str(tmp_path / "cache"), cache={"shard_clips": 1})
    planned = planned_from(path)
    shards = [planned.plan.shard(place) for place in planned.missing_shards()][-SHARDS_IN_HAND:]
    begun, may_go_on, submitted = threading.Event(), threading.Event(), threading.Semaphore(0)
    encode, begin = ShardEncoder.encode, ShardWorker._begin

    def waiting(self: ShardEncoder, *args: Any) -> Any:
        begun.set()
        assert may_go_on.wait(WAIT_S)
        return encode(self, *args)

    def counting(self: ShardWorker, *args: Any) -> Any:
        try:
            return begin(self, *args)
        finally:
            submitted.release()

    monkeypatch.setattr(ShardEncoder, "encode", waiting)
    monkeypatch.setattr(ShardWorker, "_begin", counting)
    spec = WorkerSpec(config=planned.config, manifest=planned.manifest, storage=planned.storage)
    worker = spec.start(torch.device("cpu"))
    assert isinstance(worker, ShardWorker)
    with ThreadPoolExecutor(SHARDS_IN_HAND + 1) as pool:
        futures = [pool.submit(worker.encode_shard, shard) for shard in shards]
        assert begun.wait(WAIT_S)
        for _ in futures:
            assert submitted.acquire(timeout=WAIT_S)
        worker.give_back()
        may_go_on.set()
        errors = [future.exception(WAIT_S) for future in futures]
        assert [type(e) for e in errors if e] == [CancelledError] * (SHARDS_IN_HAND - 1)
        (report,) = [future.result() for future in futures if not future.exception()]
        assert isinstance(report, ShardReport)
        with pytest.raises(RuntimeError, match="closed"):
            pool.submit(
                worker.encode_shard, shards[errors.index(next(filter(None, errors)))]
            ).result()
        worker.close()
    assert len(planned.missing_shards()) == planned.manifest.num_shards - 1


@pytest.mark.slow
@pytest.mark.long
def test_a_shard_that_comes_while_its_worker_closes_does_not_keep_it(tmp_path: Path) -> None:
    """Its thread was reading storage; the decoding processes have gone, and the encoder not yet."""
    corpus = make_corpus(tmp_path / "corpus", 1, frames=5)
    planned = planned_from(make_config(tmp_path, corpus, str(tmp_path / "cache")))
    spec = WorkerSpec(config=planned.config, manifest=planned.manifest, storage=planned.storage)
    worker = spec.start(torch.device("cpu"))
    assert isinstance(worker, ShardWorker)
    worker.pool.close()
    (place, *_) = planned.missing_shards()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(worker.encode_shard, planned.plan.shard(place))
        assert isinstance(future.exception(WAIT_S), CancelledError)
    worker.encoding.close(None)
