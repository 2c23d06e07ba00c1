"""The benchmarks' own parts: the S3 server, the checks of what readers return, the judge of orders."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

from benchmarks import capped_s3, shuffle
from benchmarks.loaders import latents
from benchmarks.loaders.measure import WrongValuesError, check, window

ROOT = Path(__file__).parents[1]
NUM = 8


@pytest.fixture(name="served", scope="module")
def served_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, object]]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "bucket" / "in").mkdir(parents=True)
    for n in range(5):
        (folder / "bucket" / "in" / f"{n} &.bin").write_bytes(bytes(range(n, n + 100)))
    (folder / "bucket" / "top.bin").write_bytes(b"")
    with capped_s3.running(folder, rate=1e9) as server:
        yield folder, server


def client(endpoint: str) -> object:
    options = {"endpoint_url": endpoint, "region_name": "us-east-1"}
    return fsspec.filesystem(
        "s3", key="k", secret="s", client_kwargs=options, skip_instance_cache=True
    )


pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]


def test_the_s3_server_gives_objects_ranges_and_tails_and_counts_what_it_sent(served):
    folder, server = served
    fs, before, of_each = client(server.endpoint), server.num_bytes, server.bytes_of()
    data = (folder / "bucket/in/3 &.bin").read_bytes()
    assert fs.cat_file("bucket/in/3 &.bin") == data
    assert server.num_bytes - before == len(data)
    assert server.bytes_of() - of_each == {"bucket/in/3 &.bin": len(data)}
    assert fs.cat_file("bucket/in/3 &.bin", start=10, end=20) == data[10:20]
    assert fs.cat_file("bucket/in/3 &.bin", start=-7) == data[-7:]
    assert fs.info("bucket/in/3 &.bin")["size"] == len(data)
    with pytest.raises(FileNotFoundError):
        fs.cat_file("bucket/in/9.bin")


def test_the_s3_server_lists_folders_and_pages(served):
    _, server = served
    fs = client(server.endpoint)
    assert fs.ls("bucket", detail=False) == ["bucket/in", "bucket/top.bin"]
    assert len(fs.find("bucket")) == 6
    pages = [
        fs.call_s3("list_objects_v2", Bucket="bucket", Prefix="in/", MaxKeys=3),
        fs.call_s3("list_objects_v2", Bucket="bucket", Prefix="in/", StartAfter="in/2 &.bin"),
    ]
    assert [page["IsTruncated"] for page in pages] == [True, False]
    assert [len(page["Contents"]) for page in pages] == [3, 2]


@pytest.fixture(name="samples", scope="module")
def samples_fixture(tmp_path_factory: pytest.TempPathFactory) -> latents.Latents:
    base, _ = latents.base_latent(None)
    return latents.write(base, NUM, tmp_path_factory.mktemp("latents") / "flat.bin")


def test_noise_keeps_samples_apart_and_as_compressible_as_the_base(samples):
    base, _ = latents.base_latent(None)
    assert latents.ratio(samples[1]) == pytest.approx(latents.ratio(base), abs=0.005)
    changed = (samples[0].view(torch.int16) != samples[1].view(torch.int16)).float().mean()
    assert changed > 0.5


def test_a_reader_that_returns_other_values_is_found_out(samples):
    order, batch = list(range(NUM)), torch.stack([samples[n] for n in range(NUM)])
    check(samples, order, (order, batch))
    with pytest.raises(WrongValuesError, match=r"lacked samples \[1\], repeated \[0\]"):
        check(samples, [0, *order[2:], 0], (order, batch))
    with pytest.raises(WrongValuesError, match="float32"):
        check(samples, order, (order, batch.float()))
    batch[5].view(torch.int16)[0, 0, 0, 0] ^= 1
    with pytest.raises(WrongValuesError, match="sample 5 differs"):
        check(samples, order, (order, batch))


@pytest.mark.parametrize("num_batches", [3, 8, 32, 1000])
def test_the_clock_runs_within_the_epoch(num_batches):
    first, last = window(num_batches)
    assert 0 <= first < last <= num_batches - 1
    assert first == num_batches - 1 - last


def test_an_order_in_sequence_meets_as_few_shards_as_there_can_be():
    num_shards = 64
    ids = np.arange(num_shards * shuffle.SHARD_SAMPLES)
    found = shuffle.quality("sequence", ids.reshape(-1, shuffle.STEP_SAMPLES))
    a_step = shuffle.STEP_SAMPLES // shuffle.SHARD_SAMPLES
    assert found.shards_a_step == a_step
    assert found.shards_in_many == a_step * shuffle.MANY_STEPS
    shard_gb = shuffle.SHARD_SAMPLES * shuffle.SAMPLE_BYTES / 1e9
    assert found.open_gb == found.most_open_gb == pytest.approx(a_step * shard_gb)


def test_the_loaders_own_order_is_judged_whole():
    num = 64 * shuffle.SHARD_SAMPLES
    ids = shuffle.ours(num, 16 * shuffle.SHARD_SAMPLES * shuffle.SAMPLE_BYTES, seed=1)
    assert np.array_equal(np.sort(ids.ravel()), np.arange(num))
    other = shuffle.quality("everything", shuffle.permutation(num, 1))
    found = shuffle.quality("pool", ids)
    assert found.shards_a_step < other.shards_a_step
    assert found.open_gb < other.open_gb


@pytest.mark.long
def test_the_contest_runs_over_both_sources_and_prints_its_table(tmp_path):
    def run(*args: str) -> str:
        command = [sys.executable, "benchmarks/loader.py", *args]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    report = tmp_path / "report.json"
    sizes = ["--samples", str(3 * NUM), "--seconds", "0.01", "--rounds", "1", "--cap-mb-s", "0"]
    readers = {"latentcache zarr zstd", "latentcache zarr zstd, no CRC", "flat file, preadv"}
    places = ["--scratch", str(tmp_path), "--latents", str(tmp_path), "--json", str(report)]
    run("--formats", "zarr zstd,flat", *sizes, *places)
    results = json.loads(report.read_text())["results"]
    assert [r["error"] for r in results] == [None] * 4
    assert {r["reader"] for r in results if r["source"] == "page-cache"} == readers
    (from_s3,) = [r for r in results if r["source"] == "s3"]
    (run_from_s3,) = from_s3["runs"]
    assert run_from_s3["num_samples"] == 3 * NUM
    stored = from_s3["disk_ratio"] * 3 * NUM * latents.SAMPLE_BYTES
    assert run_from_s3["wire_bytes"] == pytest.approx(stored, rel=0.05)
    table = run("--table", str(report))
    assert all(f"| {name} |" in table for name in readers)
    assert list(tmp_path.iterdir()) == [report]
