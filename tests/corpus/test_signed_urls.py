"""Corpora of signed URLs: their secrets reach the plan's `url` column and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import latentcache
from latentcache.config.sections import CorpusConfig
from latentcache.corpus.sources import read_corpus
from latentcache.errors import CorpusError
from tests.tools.caches import make_config, run_inline, run_job
from tests.tools.http_files import Server, serve
from tests.tools.videos import moving_pattern, write_video

pytestmark = pytest.mark.usefixtures("kept_pools")

pytest.importorskip("aiohttp", reason="fsspec reads http with it")

SECRET = "hush-hush-4711"
SIGNED = f"?X-Amz-Signature={SECRET}/a%2B&X-Amz-Credential=me{SECRET}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "served"
    folder.mkdir()
    for name in ("good", "later"):
        write_video(folder / f"{name}.mp4", moving_pattern(5, 64, 96, seed=len(name)))
    with serve(folder) as facts:
        rows = [
            f"{facts.url}/good.mp4{SIGNED},one",
            f"later.mp4?token={SECRET},two",
            f"{facts.url}/gone.mp4{SIGNED},three",
            f"gone-too.mp4?sig={SECRET}#{SECRET},four",
            f"{facts.url}/gone it's.mp4?hdnts={SECRET} {SECRET},five",
        ]
        thumb = f"https://h/thumb.png?id=7&X-Amz-Security-Token={SECRET}&sig={SECRET}"
        lines = ["video,caption,thumb", *(f"{row},{thumb}" for row in rows)]
        (folder / "table.csv").write_text("\n".join(lines) + "\n")
        yield facts


def everything_kept(cache: Path) -> dict[str, str]:
    """Return what every file of a cache holds, as text: Parquet is compressed, so it is read."""
    found = {}
    for path in cache.rglob("*"):
        if path.is_file():
            found[str(path.relative_to(cache))] = path.read_bytes().decode("latin1")
            if path.suffix == ".parquet":
                table = pq.read_table(path)
                found[str(path.relative_to(cache))] += f"{table.schema}{table.to_pydict()}"
    return found


@pytest.mark.long
@pytest.mark.parametrize("runner", ["local", "ray"])
def test_a_secret_of_a_url_is_shown_nowhere_and_kept_in_the_plan_only(
    server: Server, tmp_path: Path, runner: str
) -> None:
    cache = tmp_path / "cache"
    config = make_config(tmp_path, Path("x"), str(cache), run={"runner": runner, "workers": 1})
    data = yaml.safe_load(config.read_text())
    data["corpus"] = {"source": f"{server.url}/table.csv{SIGNED}", "keep": ["video", "thumb"]}
    data["corpus"]["columns"] = {"video": "video", "caption": "caption"}
    config.write_text(yaml.safe_dump(data))
    shown = list(run_job("precompute", config, status=3))

    server.gone |= {"later.mp4"}  # after the plan: from now on its clip fails in the run
    objects = [file for file in cache.glob("latents/5x64x96/c/**/*") if file.is_file()]
    assert objects
    for lost in [*objects, *cache.glob("samples/5x64x96/*")]:
        lost.unlink()
    shown += run_job("resume", cache, status=2)
    assert "later.mp4" in shown[-1]
    shown += run_job("resume", cache, "--skip-changed", status=3)
    shown.append(run_inline("status", cache)[1])
    shown.append(run_inline("verify", cache, "--sample", 1)[1])
    server.gone |= {"good.mp4"}
    shown.append(run_inline("verify", cache, "--sample", 1)[1])
    shown.append(run_inline("preview", cache, "--sample", 1, "-o", tmp_path / "out")[1])
    page = tmp_path / "page.html"
    shown.append(run_inline("report", cache, "-o", page, "--clips", 1)[1])

    assert not [text for text in [*shown, page.read_text()] if SECRET in text]
    holding = {name for name, text in everything_kept(cache).items() if SECRET in text}
    assert {Path(name).name for name in holding} == {"5x64x96.parquet", "sources.parquet"}
    assert {Path(name).parts[0] for name in holding} == {"plan"}
    for table in map(pq.read_table, (cache / name for name in holding)):
        columns = {name for name in table.column_names if SECRET in str(table[name].to_pylist())}
        assert columns == {"url"}
    rows = latentcache.open_cache(str(cache)).table().to_pylist()
    assert {row["source"]: (row["status"], row["reason"]) for row in rows} == {
        f"{server.url}/good.mp4": ("ok", None),
        "later.mp4": ("failed", "missing"),
        f"{server.url}/gone.mp4": ("failed", "missing"),
        "gone-too.mp4": ("failed", "missing"),
        f"{server.url}/gone it's.mp4": ("failed", "missing"),
    }
    assert {row["thumb"] for row in rows} == {
        "https://h/thumb.png?id=7&X-Amz-Security-Token=***&sig=***"
    }


def read(tmp_path: Path, rows: list[str], **config: Any) -> pa.Table:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"video": rows, "id": [f"n{i}" for i in range(len(rows))]}), path)
    return read_corpus(CorpusConfig(source=str(path), **config)).table


def test_rows_that_only_a_secret_tells_apart_need_a_key(tmp_path: Path) -> None:
    rows = [f"https://h/get?id={i}&sig={SECRET}" for i in range(3)]
    with pytest.raises(
        CorpusError, match=r"row 2 .*h/get\?\*\*\*.* differs from an earlier"
    ) as told:
        read(tmp_path, rows)
    assert "role `key`" in str(told.value)
    assert SECRET not in str(told.value)
    named = read(tmp_path, rows, columns={"video": "video", "key": "id"})
    assert named["name"].to_pylist() == ["n0", "n1", "n2"]
    assert named["url"].to_pylist() == rows


def test_the_same_url_twice_is_numbered_as_before(tmp_path: Path) -> None:
    url = f"https://h/a.mp4?sig={SECRET}"
    table = read(tmp_path, [url, url, "s3://b/a.mp4"])
    assert table["name"].to_pylist() == ["https://h/a.mp4", "https://h/a.mp4@2", "s3://b/a.mp4"]
    assert table["url"].to_pylist() == [url, url, "s3://b/a.mp4"]


def test_a_key_that_is_the_url_is_without_its_secrets_too(tmp_path: Path) -> None:
    url = f"https://me@h/a.mp4?sig={SECRET}"
    table = read(tmp_path, [url], columns={"video": "video", "key": "video"})
    assert table["name"].to_pylist() == ["https://h/a.mp4"]


def test_the_kind_of_a_signed_file_is_told_by_its_suffix(tmp_path: Path) -> None:
    table = read(tmp_path, ["https://h/a.png?sig=x/y", "https://h/b.mp4?sig=x/y"])
    assert table["kind"].to_pylist() == ["image", "video"]


@pytest.mark.slow
def test_one_signed_file_is_a_corpus(server: Server) -> None:
    url = f"{server.url}/good.mp4{SIGNED}"
    table = read_corpus(CorpusConfig(source=url)).table
    assert table["url"].to_pylist() == [url]
    assert table["name"].to_pylist() == ["good.mp4"]
