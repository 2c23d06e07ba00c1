"""An imported cache in the jobs that look for pixels, which it has not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import latentcache
from latentcache.config.fields import parse_field
from latentcache.core.records import ClipId, ShardId
from latentcache.errors import CacheError
from latentcache.inspecting.clip_reader import NO_PIXELS, UNKNOWN_FPS, PairReader
from latentcache.planning.fields import describe
from latentcache.planning.fields.planned import create_field, plan_field
from latentcache.planning.planned import reopen_cache
from tests.tools.caches import make_config, make_corpus, run_inline
from tests.tools.exchange import run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_pools")]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of two clips that came from a layout which does not say when they begin and end."""
    folder = tmp_path_factory.mktemp("imported")
    make_corpus(folder / "corpus", 1, frames=10)
    config = make_config(folder, folder / "corpus" / "v*.mp4", str(folder / "cache"))
    assert run_inline("precompute", config)[0] == 0
    run("export", folder / "cache", folder / "out", "--to", "hf")
    _forget_times(folder / "out")
    run("import", "hf", folder / "out", folder / "again", "--like", folder / "cache")
    again = latentcache.open_cache(str(folder / "again"))
    assert again[0]["start_s"] is None
    return folder / "again"


def _forget_times(folder: Path) -> None:
    (folder / ".latentcache-export.json").unlink()
    (path,) = folder.rglob("*.parquet")
    table = pq.read_table(path)
    for name in ("start_s", "end_s"):
        at = table.column_names.index(name)
        table = table.set_column(at, name, pa.nulls(len(table), pa.float64()))
    pq.write_table(table, path)


def test_it_says_that_it_was_imported(imported: Path) -> None:
    made = json.loads((imported / "cache.json").read_text())
    assert made["provenance"] == {"kind": "import", "parent": None}
    latentcache.open_cache(str(imported), expect={"provenance": "import"})
    with pytest.raises(CacheError, match="their provenance is import"):
        latentcache.open_cache(str(imported), expect={"provenance": "encoder"})


def test_a_clip_without_times_is_shown_and_says_why_it_has_no_source(imported: Path) -> None:
    cache = latentcache.open_cache(str(imported))
    config = reopen_cache(str(imported), {}).config
    with PairReader(cache, config, torch.device("cpu")) as reader:
        pair = reader.pair(ClipId(shard=ShardId(next(iter(cache.buckets)), 0), row=0))
    assert (pair.fps, pair.source, pair.problem) == (UNKNOWN_FPS, None, NO_PIXELS)
    assert len(pair.decoded) == pair.clip.frames


def test_verify_has_nothing_to_encode_again(imported: Path) -> None:
    printed = run("verify", imported, "--sample", "2")
    assert "the latents were imported" in printed
    assert "is not the file that was planned" not in printed


def test_a_condition_chooses_among_what_was_imported(imported: Path, tmp_path: Path) -> None:
    whole = latentcache.open_cache(str(imported))
    chosen, _ = whole.keys()
    run("copy", imported, tmp_path / "chosen", "--where", f"key = '{chosen}'")
    copied = latentcache.open_cache(str(tmp_path / "chosen"), expect={"provenance": "import"})
    assert copied.keys() == [chosen]
    assert torch.equal(copied.stored(chosen), whole.stored(chosen))
    run("verify", tmp_path / "chosen")


def test_damaged_latents_are_imported_again(imported: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(imported, damaged)
    whole = latentcache.open_cache(str(imported))
    path = next(
        p for p in sorted((damaged / "latents").rglob("*")) if p.is_file() and p.suffix != ".json"
    )
    data = bytearray(path.read_bytes())
    data[8] ^= 0xFF
    path.write_bytes(data)
    printed = run("verify", damaged, "--repair", status=3)
    go_on = f"latentcache import hf {imported.parent / 'out'} {damaged} --like LIKE"
    assert f"Import them again:    {go_on}" in printed
    assert "latentcache resume" not in printed
    assert f"Go on with:  {go_on}" in run("resume", damaged, status=2)
    run("import", "hf", imported.parent / "out", damaged, "--like", imported)
    again = latentcache.open_cache(str(damaged))
    assert sorted(again.keys()) == sorted(whole.keys())
    assert all(torch.equal(again.stored(key), whole.stored(key)) for key in sorted(whole.keys()))
    run("verify", damaged)


def test_a_field_of_pixels_is_refused_before_a_clip_is_tried(
    imported: Path, tmp_path: Path
) -> None:
    field = tmp_path / "field.yaml"
    field.write_text("first: {kind: raw, of: first}")
    for more in ((), ("--dry-run",)):
        printed = run("add_field", imported, field, *more, status=2)
        assert "this cache was imported and has no pixels" in printed
    assert not (imported / "fields").exists()


def test_a_field_of_pixels_that_is_there_is_not_gone_on_with(
    imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a cache to which one was added when that was not refused."""
    cache = shutil.copytree(imported, tmp_path / "cache")
    with monkeypatch.context() as before:
        before.setattr(describe, "OF_SOURCES", ())
        planned = reopen_cache(str(cache), {})
        create_field(plan_field(planned, "first", parse_field("first", {"kind": "raw"})))
    printed = run("resume", cache, "--field", "first", status=2)
    assert "this cache was imported and has no pixels" in printed
    run("drop_field", cache, "first", "--yes")
    run("resume", cache)
