"""WebDataset, MDS and Hugging Face's Parquet: read by their rules, and taken in again bit for bit."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import latentcache
from jobs.parsers import LAYOUTS as NAMES
from latentcache.core.records import ClipResult
from latentcache.core.spec import IdSpec
from latentcache.errors import CorpusError
from latentcache.exchange.generic import record_of
from latentcache.exchange.layouts import LAYOUTS
from latentcache.format.manifest import read_manifest
from latentcache.storage.folder import Storage
from tests.tools import planned
from tests.tools.caches import make_config, run_inline
from tests.tools.exchange import export, make_cache, run, spec_of, take_in, unmark
from tests.tools.forms import Sample, hf_samples, mds_samples, tensor, webdataset_samples
from tests.tools.videos import moving_pattern, write_video


def read_webdataset(root: Path) -> list[Sample]:
    return [
        {
            "key": s["json"]["key"],
            "latents": s["latents.pth"],
            "umt5": s["umt5.pth"],
            "caption": s["txt"],
        }
        for s in webdataset_samples(root)
    ]


def read_mds(root: Path) -> list[Sample]:
    found = []
    for values in mds_samples(root):
        facts = values["facts"]
        *shape, dtype = values["umt5.shape"]
        found.append(
            {
                "key": values["key"],
                "latents": tensor(values["latents"], facts["shape"], facts["dtype"]),
                "umt5": tensor(values["umt5"], shape, dtype),
                "caption": values["caption"],
            }
        )
    return found


def read_hf(root: Path) -> list[Sample]:
    return [
        {
            "key": row["key"],
            "latents": tensor(row["latents"], row["shape"], row["dtype"]),
            "umt5": tensor(row["umt5"], row["umt5.shape"], "bfloat16"),
            "caption": row["caption"] or "",
        }
        for row in hf_samples(root)
    ]


READERS = {"webdataset": read_webdataset, "mds": read_mds, "hf": read_hf}


@pytest.mark.parametrize("layout", READERS)
def test_what_is_stored_comes_out_and_back(
    wan: latentcache.Cache, tmp_path: Path, layout: str
) -> None:
    out = tmp_path / "out"
    export(wan, out, layout, "--field", "umt5")
    found = {sample["key"]: sample for sample in READERS[layout](out)}
    assert set(found) == set(wan.keys())
    for key, sample in found.items():
        assert torch.equal(sample["latents"], wan.stored(key))
        assert torch.equal(sample["umt5"], wan[key]["umt5"])
        assert sample["caption"] == (wan[key]["caption"] or "")
    again = take_in(layout, out, tmp_path / "again", wan)
    assert again.spec == wan.spec
    for key in found:
        assert torch.equal(again.stored(key), wan.stored(key))
        assert again[key]["caption"] == wan[key]["caption"]
    first = read_manifest(again.storage).generations[0]
    assert (first.kind, first.selection) == ("import", f"{layout} of {out}")


@pytest.mark.parametrize("layout", READERS)
def test_a_clip_s_times_in_its_source_come_back(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = itertools.count()

    def result(start_s: float) -> ClipResult:
        return ClipResult(start_s=start_s + next(times), end_s=start_s + next(times) + 0.2)

    monkeypatch.setattr(planned, "ClipResult", result)
    cache = make_cache(tmp_path, clips=2)
    assert cache[0]["end_s"] > cache[0]["start_s"]
    export(cache, tmp_path / "out", layout)
    again = take_in(layout, tmp_path / "out", tmp_path / "again", cache)
    export(again, tmp_path / "out2", layout)
    third = take_in(layout, tmp_path / "out2", tmp_path / "third", cache)
    for row in cache.table().to_pylist():
        for clip in (again[row["key"]], third[row["key"]]):
            assert (clip["start_s"], clip["end_s"]) == (row["start_s"], row["end_s"])


@pytest.mark.parametrize("times", [(float("nan"), 1.0), (2.0, 1.0), (0.0, float("inf"))])
def test_times_that_no_clip_has_are_refused(tmp_path: Path, times: tuple[float, float]) -> None:
    cache = make_cache(tmp_path, names=("a.mp4",))
    export(cache, tmp_path / "out", "hf")
    (tmp_path / "out" / ".latentcache-export.json").unlink()
    (path,) = (tmp_path / "out").rglob("*.parquet")
    table = pq.read_table(path)
    for name, time in zip(("start_s", "end_s"), times, strict=True):
        table = table.set_column(table.column_names.index(name), name, pa.array([time]))
    pq.write_table(table, path)
    args = ("import", "hf", tmp_path / "out", tmp_path / "new", "--like", cache.storage.url)
    assert "which no clip is" in run(*args, status=2)


@pytest.mark.parametrize("layout", READERS)
@pytest.mark.parametrize(("scales", "shape"), [((), [5, 4, 6]), ((1, 2, 3), [14])])
def test_ids_come_back_too(
    tmp_path: Path, layout: str, scales: tuple[int, ...], shape: list[int]
) -> None:
    """A grid per frame, and scales one after the other."""
    ids = IdSpec(codebook_size=1 << 32, scales=scales)
    cache = make_cache(tmp_path, spec_of(stored="ids", ids=ids), clips=2)
    assert list(cache.stored(0).shape) == shape
    export(cache, tmp_path / "out", layout)
    again = take_in(layout, tmp_path / "out", tmp_path / "again", cache)
    for key in cache.keys():  # noqa: SIM118 - a cache is no dict
        assert torch.equal(again.stored(key), cache.stored(key))


@pytest.mark.parametrize("layout", READERS)
def test_cut_files_and_another_encoder_s_are_refused(
    wan: latentcache.Cache, tmp_path: Path, layout: str
) -> None:
    out = tmp_path / "out"
    export(wan, out, layout)
    unmark(out)
    other = make_cache(tmp_path / "other", spec_of(weights_sha256="0" * 64))
    target = tmp_path / "n"
    printed = run("import", layout, out, target, "--like", other.storage.url, status=2)
    assert "weights_sha256 differ" in printed
    (path,) = [p for p in out.rglob("*") if p.suffix in (".tar", ".mds", ".parquet")]
    path.write_bytes(path.read_bytes()[:700])
    printed = run("import", layout, out, target, "--like", wan.storage.url, status=2)
    assert f"{path} is no whole" in printed
    assert not target.exists()


def test_the_command_line_knows_every_layout() -> None:
    assert tuple(LAYOUTS) == NAMES


def test_facts_that_no_number_can_be_are_refused(tmp_path: Path) -> None:
    facts = {
        "key": "a", "source": "a.mp4", "bucket": "5x32x48", "shape": [4, 2, 4, 6], "dtype": "float32",
        "start": float("inf"),
    }  # fmt: skip
    with pytest.raises(CorpusError, match="does not say all"):
        record_of(Storage(str(tmp_path)), "x.json", facts, None, None)


@pytest.mark.slow
def test_columns_that_stay_behind_are_named(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", moving_pattern(5, 64, 96))
    row = {"video": str(tmp_path / "a.mp4"), "rating": 3, "caption": "a"}
    (tmp_path / "table.jsonl").write_text(json.dumps(row))
    url = str(tmp_path / "cache")
    config = make_config(tmp_path, tmp_path / "table.jsonl", url, corpus={"keep": ["rating"]})
    assert run_inline("precompute", config)[0] == 0
    printed = run("export", url, tmp_path / "out", "--to", "webdataset")
    assert "note     columns that this layout has no place for stay here: rating" in printed


@pytest.mark.slow
def test_datasets_reads_what_it_is_told_to(
    wan: latentcache.Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The printed line, with the library itself: all at once, and streamed."""
    datasets = pytest.importorskip("datasets", reason="Hugging Face's datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "kept"))
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setattr(datasets.config, name, True)
    out = tmp_path / "out"
    (line,) = [
        line for line in export(wan, out, "hf", "--field", "umt5").splitlines() if "load_" in line
    ]
    names: dict[str, Any] = {"datasets": datasets}
    exec(line, names)
    streamed = datasets.load_dataset(str(out), split="train", streaming=True)
    assert list(streamed) == list(names["dataset"])
    assert len(names["dataset"]) == len(wan)
    for row in names["dataset"]:
        assert torch.equal(
            tensor(row["latents"], row["shape"], row["dtype"]), wan.stored(row["key"])
        )
        clip = wan[row["key"]]
        assert torch.equal(tensor(row["umt5"], row["umt5.shape"], "bfloat16"), clip["umt5"])
        assert (row["caption"], row["source"]) == (clip["caption"], row["key"].rpartition("#")[0])
