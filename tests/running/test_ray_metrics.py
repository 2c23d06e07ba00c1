"""Ray's metrics of a run, read from where Prometheus would: the agent of the node."""

from __future__ import annotations

import json
import re
import socket
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import ray

from latentcache.core.records import ShardId, ShardReport
from latentcache.running.events import STAGES, Progress, Retried, Task, worker_name
from latentcache.running.runners.ray_metrics import RunMetrics, WorkerMetrics
from tests.running.test_log import prepare, run_of
from tests.tools.caches import make_corpus

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning"),
]

#: Ray's agent needs them to serve anything.
prometheus = pytest.importorskip("prometheus_client.parser", reason="needs ray[default]")
pytest.importorskip("opencensus", reason="needs ray[default]")

WAIT_S = 120


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    port = free_port()
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 << 20,
        log_to_driver=False,
        _metrics_export_port=port,
        _system_config={"metrics_report_interval_ms": 1000},
    )
    yield f"http://127.0.0.1:{port}/metrics"
    ray.shutdown()


def scrape(endpoint: str) -> Counter[tuple[str, str]]:
    """Samples of latentcache, summed by name and by the tag that tells them apart."""
    with urllib.request.urlopen(endpoint, timeout=10) as answer:
        page = answer.read().decode()
    found: Counter[tuple[str, str]] = Counter()
    for family in prometheus.text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name.startswith("ray_latentcache_") and not sample.name.endswith("_bucket"):
                tag = sample.labels.get("stage") or sample.labels.get("reason") or ""
                name = sample.name.removeprefix("ray_latentcache_")
                found[name, tag] += sample.value  # type: ignore[assignment]
    return found


def wait_for(endpoint: str, counts: Mapping[str, float]) -> Counter[tuple[str, str]]:
    """Scrape until these are counted: each is exported every few seconds. counts: by name, at the least."""
    ends = time.monotonic() + WAIT_S
    while time.monotonic() < ends:
        try:
            found = scrape(endpoint)
        except OSError:  # the agent is still starting
            found = Counter()
        totals: Counter[str] = Counter()
        for (name, _), value in found.items():
            totals[name] += value
        if all(totals[name] >= count for name, count in counts.items()):
            return found
        time.sleep(0.5)
    raise AssertionError(f"{counts} are not in {found}")


@pytest.mark.long
def test_prometheus_sees_what_the_run_did(endpoint: str, tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", 3)
    prepared = prepare(tmp_path, corpus, run={"runner": "ray", "workers": 1})
    (corpus / "v1.mp4").unlink()
    run = run_of(prepared)
    reports = []
    running = run.events()
    for event in running:
        if isinstance(event, ShardReport):
            reports.append(event)
        if len(reports) == run.summary.shards == 3:
            counts = {
                "clips_total": run.summary.clips_ok,
                "failed_clips_total": run.summary.clips_failed,
                "stored_bytes_total": run.summary.stored_bytes,
            }
            found = wait_for(endpoint, counts)  # while the actor lives
            break
    else:
        raise AssertionError("the run ended before it was looked at")
    summary = run.summary
    running.close()
    assert found["clips_total", ""] == summary.clips_ok
    assert found["frames_total", ""] == summary.frames
    assert found["stored_bytes_total", ""] == summary.stored_bytes
    assert found["failed_clips_total", "missing"] == summary.clips_failed > 0
    for stage in STAGES:
        tag = stage.removesuffix("_s")
        assert found["shard_stage_seconds_count", tag] == len(reports)
        assert found["stage_seconds_total", tag] == pytest.approx(getattr(summary, stage))
    assert {report.worker for report in reports} == {worker_name(socket.gethostname(), (), 0)}


@pytest.mark.long
def test_the_drivers_gauges_are_there(endpoint: str) -> None:
    metrics = RunMetrics()
    metrics.add(Progress(clips_done=7, workers=2, shards_in_hand=5))
    metrics.add(Retried(task=Task(shard=ShardId("b", 0))))
    found = wait_for(endpoint, {"shard_retries_total": 1, "shards_in_hand": 5})
    assert found["clips_done", ""] == 7
    assert found["workers", ""] == 2
    assert found["shards_in_hand", ""] == 5
    assert found["shard_retries_total", ""] == 1


def test_a_shard_that_another_run_committed_is_not_counted() -> None:
    report = ShardReport(
        bucket="b",
        shard=0,
        num_clips=1,
        num_ok=1,
        num_frames=1,
        stored_bytes=1,
        table_bytes=1,
        raw_bytes=1,
        committed_before=True,
    )
    metrics = WorkerMetrics("w")
    metrics._shard_seconds = None  # type: ignore[assignment] # whatever is counted would fail
    metrics.add(report)


def test_the_dashboard_shows_metrics_that_there_are() -> None:
    """Every metric is shown, and none that no run has."""
    root = Path(__file__).parents[2]
    text = (root / "configs" / "grafana.json").read_text(encoding="utf-8")
    shown = {
        name.removesuffix("_bucket")
        for panel in json.loads(text)["panels"]
        for target in panel["targets"]
        for name in re.findall(r"ray_(latentcache_\w+)", target["expr"])
    }
    made = (root / "latentcache" / "running" / "runners" / "ray_metrics.py").read_text()
    assert shown == set(re.findall(r'"(latentcache_\w+)"', made)) - {"latentcache_clips_done"}
