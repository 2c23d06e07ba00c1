"""`precompute` as a user runs it: what it prints, what it leaves, and its exit status."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import latentcache
from jobs import progress
from latentcache import encoders
from latentcache.running.events import Progress
from tests.tools.caches import (
    committed,
    make_config,
    make_corpus,
    printed_by,
    read_tables,
    run_job,
)
from tests.tools.videos import read_with_pyav, write_video

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_pools")]


def dct_latents(pixels: np.ndarray) -> torch.Tensor:
    module, config = encoders.resolve({"kind": "dct", "store": "mean"})
    spec = module.describe(config, dtype="bfloat16")
    encoder = module.build(config, spec=spec, device=torch.device("cpu"))
    return encoder.encode(torch.from_numpy(pixels)[None])[0, :16].to(torch.bfloat16)


def test_precompute_says_what_it_did_and_what_to_do_next(corpus: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, corpus, str(tmp_path / "cache"))
    out, err = run_job("precompute", config, status=3)
    assert "corpus   1 image, 8 videos; ignored: 0" not in out
    assert "corpus   1 image, 8 videos" in out
    assert re.search(r"5x64x96 +12 +4 +16x2x8x12", out)
    assert "rejected: 1 x unreadable: no decoder can open the file" in out
    assert "clips    13 ok, 0 failed" in out
    assert "shards   5 written, 0 failed, 0 retries" in out
    assert "cache    13 clips ok, 0 failed, 2 sources rejected" in out
    assert f"Next:  latentcache stream {tmp_path}/cache" in out
    assert "Traceback" not in err


def test_every_source_is_in_the_table_ok_or_with_its_reason(clean: Path) -> None:
    rows = latentcache.open_cache(str(clean)).table().to_pylist()
    found = {(row["source"], row["status"], row["reason"]) for row in rows}
    videos = {(f"v{i}.mp4", "ok", None) for i in range(6)}
    assert found == videos | {
        ("picture.png", "ok", None),
        ("page.mp4", "failed", "unreadable"),
        ("short.mp4", "failed", "too_short"),
    }


def test_cached_latents_equal_the_encoder_on_pyavs_pixels(corpus: Path, clean: Path) -> None:
    cache = latentcache.open_cache(str(clean))
    pixels = read_with_pyav(corpus / "v2.mp4")
    sample = cache.sample("v2.mp4#1")
    torch.testing.assert_close(cache.stored("v2.mp4#1"), dct_latents(pixels[5:10]), rtol=0, atol=0)
    assert sample["caption"] == "pattern number 2"
    assert (sample["start_s"], sample["end_s"]) == pytest.approx((5 / 24, 10 / 24), abs=1e-3)


def test_a_dry_run_touches_nothing(corpus: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, corpus, str(tmp_path / "cache"))
    out = printed_by("precompute", config, "--dry-run")
    assert re.search(r"in all +13 +5", out)
    assert "nothing was written" in out
    assert not (tmp_path / "cache").exists()


def test_running_again_encodes_nothing(corpus: Path, clean: Path) -> None:
    before = committed(clean)
    out = printed_by("precompute", make_config(clean.parent, corpus, str(clean)), status=3)
    assert "Nothing to encode: all 13 clips are committed." in out
    assert committed(clean) == before


def test_both_formats_hold_the_same_latents(corpus: Path, clean: Path, tmp_path: Path) -> None:
    config = make_config(
        tmp_path,
        corpus,
        str(tmp_path / "p"),
        cache={"format": "parquet", "url": str(tmp_path / "p")},
    )
    printed_by("precompute", config, status=3)
    zarr, parquet = latentcache.open_cache(str(clean)), latentcache.open_cache(str(tmp_path / "p"))
    assert len(zarr) == len(parquet) == 13
    for one, other in zip(zarr, parquet, strict=True):
        assert one["key"] == other["key"]
        assert torch.equal(one["latents"], other["latents"])


def test_another_recipe_on_the_same_cache_is_refused_with_the_difference(
    corpus: Path, clean: Path
) -> None:
    config = make_config(clean.parent, corpus, str(clean))
    err = printed_by("precompute", config, "clips.interpolation=bilinear", status=2)
    assert "clips.interpolation: bicubic in the cache, bilinear now" in err
    assert "would mix two kinds of latents" in err
    err = printed_by("precompute", config, "cache.format=parquet", status=2)
    assert "its shards are made in another way, which cannot change in a cache" in err
    assert "cache.format: zarr in the cache, parquet now" in err
    assert "two kinds of latents" not in err
    err = printed_by("precompute", config, "encoder.store=moments", status=2)
    assert "stored: mean in the cache, moments now" in err


def test_another_corpus_on_the_same_cache_is_taken_in(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", 2)
    config = make_config(tmp_path, corpus, str(tmp_path / "cache"))
    printed_by("precompute", config, status=3)
    write_video(corpus / "new.mp4", read_with_pyav(corpus / "v1.mp4"))
    (corpus / "v0.mp4").unlink()
    out = printed_by("precompute", config, status=3)
    assert "new      1 sources: new.mp4" in out
    assert "gone     1 sources, which stay; --prune retires them: v0.mp4" in out
    assert "clips    2 ok, 0 failed (5 more were there before)" in out


def test_stream_reads_everything_and_measures(clean: Path) -> None:
    out, _ = run_job("stream", clean, "--batch-size", "4", "--epochs", "2")
    assert "13 clips, DCT, 16 channels, mean as bfloat16" in out
    assert "26 samples" in out
    assert "samples/s" in out
    assert "waited" in out
    assert "bucket   5x64x96: batches of latents [4, 16, 2, 8, 12]" in out


def test_secrets_reach_no_file_of_the_cache_and_no_output(corpus: Path, tmp_path: Path) -> None:
    secret = "hush-hush-123"
    options = {"storage_options": {"auto_mkdir": True, "listings_expiry_time": 1}}
    cache = tmp_path / "cache"
    config = make_config(tmp_path, corpus, str(cache), cache={"url": str(cache), **options})
    data = yaml.safe_load(config.read_text())
    data["corpus"]["storage_options"] = {"key": secret}
    config.write_text(yaml.safe_dump(data))
    out = printed_by("precompute", config, status=3)
    assert secret not in out
    holding = [p for p in cache.rglob("*") if p.is_file() and secret.encode() in p.read_bytes()]
    assert not holding
    assert (
        "storage_options" not in json.loads((cache / "cache.json").read_text())["config"]["cache"]
    )


def test_tables_of_a_finished_cache_are_readable_by_plain_pyarrow(clean: Path) -> None:
    tables = read_tables(clean)
    samples = [table for name, table in tables.items() if name.startswith("samples/")]
    rejected = [table for name, table in tables.items() if name.endswith("rejected.parquet")]
    assert sum(table.num_rows for table in [*samples, *rejected]) == 15


def test_the_cache_says_which_frames_each_latent_frame_stands_for(clean: Path) -> None:
    manifest = latentcache.open_cache(str(clean)).manifest
    frames = {bucket.name: bucket.pixel_frames for bucket in manifest.buckets}
    assert frames == {"1x64x96": ((0, 1),), "5x64x96": ((0, 1), (1, 5))}
    assert manifest.spec.packages["torch"] == torch.__version__


def test_a_run_without_workers_says_that_it_waits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "NO_WORKER_S", 0.0)
    with progress.Bar(total=3) as bar:
        bar.show(Progress(clips_done=1, workers=1))
        assert "no worker is up" not in capsys.readouterr().err
        bar.show(Progress(clips_done=1, workers=0))
        bar.show(Progress(clips_done=1, workers=0))
    assert capsys.readouterr().err.count("no worker is up; the run waits") == 1
