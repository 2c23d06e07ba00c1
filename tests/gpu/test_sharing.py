"""What a worker takes of a GPU that it shares: what was measured, and not for longer than it needs it."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from latentcache.running import transfer
from latentcache.running.gpu_sharing import CONTEXT_BYTES, USED_FRACTION, measure
from latentcache.running.transfer import CudaTransfer
from latentcache.running.worker import ShardWorker, WorkerSpec
from tests.tools.caches import make_config, make_corpus
from tests.tools.diffusers_tools import section
from tests.tools.planned import planned_from
from tests.tools.tiny_models import save

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA"),
]
CUDA = torch.device("cuda")


def forget() -> None:
    """Let the high-water mark of memory begin again, with what is alive."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


@pytest.mark.parametrize("changes", [{}, {"memory_format": "channels_last"}])
def test_a_worker_takes_what_was_measured(tmp_path: Path, changes: dict[str, str]) -> None:
    """Of the measured fraction that is handed out, the rest is for clips of other sizes."""
    model = save("wan", tmp_path / "wan")
    corpus = make_corpus(tmp_path / "corpus", 4)
    path = make_config(
        tmp_path, corpus, str(tmp_path / "cache"), encoder=section(model, "wan", **changes)
    )
    planned = planned_from(path)
    spec = WorkerSpec(
        config=planned.config, manifest=planned.manifest, storage=planned.storage, num_cpus=2
    )
    forget()
    need = measure(spec)
    assert need.worker_bytes is not None
    forget()
    worker = ShardWorker(spec, CUDA)
    try:
        for place in planned.missing_shards():
            worker.encode_shard(planned.plan.shard(place))
        assert worker.gate.num_compared
    finally:
        worker.close()
    measured = need.worker_bytes - CONTEXT_BYTES
    assert torch.cuda.max_memory_reserved() <= measured / USED_FRACTION


def test_memory_is_given_back_where_a_neighbour_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    found = CudaTransfer(CUDA, takes_device_pixels=True)
    forget()
    before = torch.cuda.memory_reserved()
    for own_bytes, kept in ((1 << 60, True), (-1 << 60, False)):
        monkeypatch.setattr(transfer, "OWN_BYTES", own_bytes)
        torch.empty(1 << 28, dtype=torch.uint8, device=CUDA)
        assert torch.cuda.memory_reserved() >= before + (1 << 28)
        found.give_back()
        assert (torch.cuda.memory_reserved() > before) == kept
