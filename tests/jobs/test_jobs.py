"""The jobs as a user runs them: what they print, what they leave, and their exit statuses."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import latentcache
from jobs import progress
from latentcache import encoders
from latentcache.planning import changed_sources
from latentcache.running.events import Progress
from tests.tools.caches import (
    assert_same_cache,
    committed,
    make_config,
    make_corpus,
    objects_of,
    read_files,
    read_tables,
    run_inline,
    run_job,
    samples_of,
    start_job,
)
from tests.tools.encoders import slow
from tests.tools.videos import read_with_pyav, write_video

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("jobs") / "corpus")


@pytest.fixture(scope="module")
def clean(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache made in one go."""
    folder = tmp_path_factory.mktemp("clean")
    run_job("precompute", make_config(folder, corpus, str(folder / "cache")), status=3)
    return folder / "cache"


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
    out, _ = run_job("precompute", config, "--dry-run")
    assert re.search(r"in all +13 +5", out)
    assert "nothing was written" in out
    assert not (tmp_path / "cache").exists()


def test_running_again_encodes_nothing(corpus: Path, clean: Path) -> None:
    before = committed(clean)
    out, _ = run_job("precompute", make_config(clean.parent, corpus, str(clean)), status=3)
    assert "Nothing to encode: all 13 clips are committed." in out
    assert committed(clean) == before


def test_both_formats_hold_the_same_latents(corpus: Path, clean: Path, tmp_path: Path) -> None:
    config = make_config(
        tmp_path,
        corpus,
        str(tmp_path / "p"),
        cache={"format": "parquet", "url": str(tmp_path / "p")},
    )
    run_job("precompute", config, status=3)
    zarr, parquet = latentcache.open_cache(str(clean)), latentcache.open_cache(str(tmp_path / "p"))
    assert len(zarr) == len(parquet) == 13
    for one, other in zip(zarr, parquet, strict=True):
        assert one["key"] == other["key"]
        assert torch.equal(one["latents"], other["latents"])


def test_resume_encodes_what_is_missing_bit_for_bit(
    corpus: Path, clean: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    run_job("precompute", make_config(tmp_path, corpus, str(cache)), status=3)
    uncommit(cache, "5x64x96/000001")
    (cache / "samples/1x64x96/000000.parquet").unlink()  # its object is there, and is adopted
    before = committed(cache)
    out, _ = run_job("resume", cache, status=3)
    assert "5 shards, 3 committed, 2 to encode" in out
    after = committed(cache)
    assert {name: after[name] for name in before} == before
    assert_same_cache(cache, clean)


def uncommit(cache: Path, pattern: str) -> None:
    """Take shards out of a cache of Zarr arrays: their sample tables, and their objects."""
    for table in [*cache.glob(f"samples/{pattern}.parquet")]:
        table.unlink()
        (cache / f"latents/{table.parent.name}/c/{int(table.stem)}/0/0/0/0").unlink()


def test_retry_failed_plans_failed_clips_again_and_keeps_the_others(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", 3)
    cache, hidden = tmp_path / "cache", corpus / "v1.mp4"
    run_job("precompute", make_config(tmp_path, corpus, str(cache)), status=3)
    whole = samples_of(cache)
    uncommit(cache, "5x64x96/*")
    away = hidden.rename(tmp_path / "away.mp4")
    out, _ = run_job("resume", cache, "--skip-changed", status=3)
    assert "2 x missing: the file is not there" in out
    assert "latentcache resume" in out
    assert "--retry-failed" in out
    assert len(latentcache.open_cache(str(cache))) == 5
    before = read_files(cache)
    away.rename(hidden)
    out, _ = run_job("resume", cache, status=3)
    assert "0 to encode" in out
    out, _ = run_job("resume", cache, "--retry-failed", status=3)
    assert (
        "retry    2 failed clips and 2 rejected sources were looked at; 2 clips are planned" in out
    )
    assert "cache    7 clips ok, 0 failed" in out
    assert samples_of(cache) == whole
    pointers = {"index.parquet", *(path for path in before if path.endswith("zarr.json"))}
    after = read_files(cache)
    assert not [path for path in before.keys() - pointers if after[path] != before[path]]


def test_resume_refuses_sources_that_changed(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", 2)
    cache = tmp_path / "cache"
    run_job("precompute", make_config(tmp_path, corpus, str(cache)), status=3)
    uncommit(cache, "5x64x96/000000")
    write_video(corpus / "v0.mp4", read_with_pyav(corpus / "v1.mp4"))
    _, err = run_job("resume", cache, status=2)
    assert "1 of 2 source files are not the ones that were planned" in err
    assert "v0.mp4" in err
    assert "--skip-changed" in err


@pytest.mark.long
def test_resume_looks_at_some_sources_of_many_and_decoding_at_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus(tmp_path / "corpus", 8)
    cache = tmp_path / "cache"
    run_job("precompute", make_config(tmp_path, corpus, str(cache)), status=3)
    uncommit(cache, "5x64x96/*")
    seen: list[str] = []
    identify = changed_sources.identify_url

    def spy(url: str, options: Mapping[str, Any]) -> str:
        seen.append(url)
        return identify(url, options)

    monkeypatch.setattr(changed_sources, "identify_url", spy)
    monkeypatch.setattr(changed_sources, "MAX_CHECKED", 4)
    changed = corpus / "v2.mp4"
    write_video(changed, read_with_pyav(corpus / "v1.mp4"))
    status, printed = run_inline("resume", cache)
    assert 0 < len(set(seen)) < 8
    assert str(changed) not in seen
    assert f"{len(set(seen))} of the source files were looked at" in printed
    assert status == 3
    assert "source_changed: the file is not the one that was planned" in printed
    rows = latentcache.open_cache(str(cache)).table().to_pylist()
    assert {r["source"] for r in rows if r["reason"] == "source_changed"} == {"v2.mp4"}


@pytest.mark.long
def test_a_corpus_that_has_moved_is_planned_again_and_nothing_is_lost(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", 2)
    cache, shard = tmp_path / "cache", "5x64x96/000000"
    config = make_config(tmp_path, corpus, str(cache))
    (corpus / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    run_job("precompute", config, status=3)
    before = read_files(cache)
    uncommit(cache, shard)
    kept = committed(cache)
    moved = corpus.rename(tmp_path / "moved")
    _, err = run_job("resume", cache, status=1)
    assert "If the corpus has moved, run precompute with the new corpus.source" in err
    run_job("precompute", config, f"corpus.source={moved}", status=3)
    assert {name: facts for name, facts in committed(cache).items() if name in kept} == kept
    assert objects_of(read_files(cache)).items() >= objects_of(before).items()
    uncommit(cache, shard)
    assert "1 to encode" in run_job("resume", cache, status=3)[0]
    run_job("verify", cache, "--sample", "2")


def test_another_recipe_on_the_same_cache_is_refused_with_the_difference(
    corpus: Path, clean: Path
) -> None:
    config = make_config(clean.parent, corpus, str(clean))
    _, err = run_job("precompute", config, "clips.interpolation=bilinear", status=2)
    assert "clips.interpolation: bicubic in the cache, bilinear now" in err
    assert "would mix two kinds of latents" in err
    _, err = run_job("precompute", config, "cache.format=parquet", status=2)
    assert "cache.format: zarr in the cache, parquet now" in err
    _, err = run_job("precompute", config, "encoder.store=moments", status=2)
    assert "stored: mean in the cache, moments now" in err


def test_another_corpus_on_the_same_cache_is_taken_in(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", 2)
    config = make_config(tmp_path, corpus, str(tmp_path / "cache"))
    run_job("precompute", config, status=3)
    write_video(corpus / "new.mp4", read_with_pyav(corpus / "v1.mp4"))
    (corpus / "v0.mp4").unlink()
    out, _ = run_job("precompute", config, status=3)
    assert "new      1 sources: new.mp4" in out
    assert "gone     1 sources, which stay; --prune retires them: v0.mp4" in out
    assert "clips    2 ok, 0 failed (5 more were there before)" in out


def wrong(tmp_path: Path, source: Path, /, **sections: object) -> str:
    config = make_config(tmp_path, source, str(tmp_path / "cache"), **sections)  # type: ignore[arg-type]
    _, err = run_job("precompute", config, status=2)
    return err


def test_wrong_configurations_say_what_to_do(corpus: Path, tmp_path: Path) -> None:
    err = wrong(tmp_path, corpus, clips={"frame": 5})
    assert "clips.frame: unknown key. Did you mean 'frames'?" in err
    err = wrong(tmp_path, corpus, clips={"frames": 6})
    assert "4k+1" in err
    assert "5 or 9" in err
    err = wrong(tmp_path, corpus, clips={"size": [60, 96]})
    assert "Use 64x96" in err
    err = wrong(tmp_path, corpus, encoder={"kind": "diffuser_video"})
    assert "Did you mean 'diffusers_video'?" in err
    err = wrong(tmp_path, corpus, cache={"url": "s4://bucket/x"})
    assert "unknown scheme 's4'." in err
    assert not (tmp_path / "cache").exists()


def test_wrong_corpora_say_what_to_do(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty" in wrong(tmp_path, tmp_path / "empty")
    assert "is not there" in wrong(tmp_path, tmp_path / "gone")
    table = tmp_path / "table.csv"
    table.write_text("file,text\nv0.mp4,hello\n")
    err = wrong(tmp_path, table, corpus={"source": str(table), "columns": {"video": "path"}})
    assert "has no column 'path'. It has: 'file', 'text'." in err
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "page.mp4").write_text("<html>")
    err = wrong(tmp_path, tmp_path / "bad")
    assert "no source gives a clip" in err
    assert "1 x unreadable" in err


def test_an_unwritable_cache_is_one_message(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    config = make_config(tmp_path, corpus, str(tmp_path / "file" / "cache"))
    _, err = run_job("precompute", config, status=1)
    assert "cannot write" in err or "Not a directory" in err
    assert len(err.strip().splitlines()) == 1


def test_a_folder_with_other_files_is_no_place_for_a_cache(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("precious")
    err = wrong(tmp_path, corpus, cache={"url": str(tmp_path / "home")})
    assert "it holds thesis.tex" in err
    assert "Nothing was written" in err
    assert [p.name for p in (tmp_path / "home").iterdir()] == ["thesis.tex"]


def test_wrong_command_lines_exit_with_2(tmp_path: Path) -> None:
    for job, *arguments in (
        ("precompute",),
        ("precompute", tmp_path / "none.yaml"),
        ("resume", tmp_path / "nothing"),
        ("stream", tmp_path / "nothing"),
        ("stream", "--epochs", "0", tmp_path),
    ):
        _, err = run_job(job, *arguments, status=2)
        assert err


def test_resume_without_a_cache_says_so(tmp_path: Path) -> None:
    _, err = run_job("resume", tmp_path, status=2)
    assert "there is no cache here" in err
    assert "latentcache precompute" in err


@pytest.mark.parametrize(
    ("runner", "signal_number"), [("local", signal.SIGINT), ("ray", signal.SIGTERM)]
)
def test_an_interrupt_says_how_to_resume_and_what_is_committed_stays(
    tmp_path: Path, runner: str, signal_number: signal.Signals
) -> None:
    corpus = make_corpus(tmp_path / "corpus", 12, frames=81)
    cache = tmp_path / "cache"
    config = make_config(
        tmp_path, corpus, str(cache), encoder={"kind": slow.__name__}, run={"runner": runner}
    )
    process = start_job("precompute", config)
    while len(committed(cache)) < 3:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal_number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert "shards were committed and are safe" in err
    assert f"Go on with:  latentcache resume {cache}" in err
    assert "Traceback" not in err
    kept = committed(cache)
    shards = [name for name in kept if "5x64x96" in name]
    assert len(latentcache.open_cache(str(cache))) == 3 * len(shards) + len(kept) - len(shards)
    run_job("resume", cache, status=3, env={slow.ENCODE_S: "0"})
    assert len(latentcache.open_cache(str(cache))) == 12 * 16 + 1
    assert {name: facts for name, facts in committed(cache).items() if name in kept} == kept


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
    out, err = run_job("precompute", config, status=3)
    assert secret not in out + err
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
