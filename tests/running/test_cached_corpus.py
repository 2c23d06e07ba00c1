"""A cache as a corpus: clips are decoded as floats, encoded, and say how they came to be."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import latentcache
from latentcache import encoders
from latentcache.config.sections import CorpusConfig
from latentcache.core.drift import drift
from latentcache.corpus.sources import read_corpus
from latentcache.errors import CacheError, ConfigError
from tests.encoders.test_tiny import TAEF2, needs_taef2
from tests.tools.caches import make_config, make_corpus, run_inline
from tests.tools.doc_blocks import PAGES, blocks
from tests.tools.videos import SHARED, moving_pattern, write_video

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_pools")]
CPU = torch.device("cpu")
EXACT = {"dtype": "float32", "shard_clips": 2}


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of two clips per video, with captions and a kept column."""
    folder = tmp_path_factory.mktemp("parent")
    make_corpus(folder / "corpus", 3, frames=10)
    names = [f"corpus/v{n}.mp4" for n in range(3)]
    table = {"video": names, "caption": [f"number {n}" for n in range(3)], "score": [0.5, 1.5, 2.5]}
    pq.write_table(pa.table(table), folder / "table.parquet")
    corpus = {"source": str(folder / "table.parquet"), "keep": ["score"]}
    config = make_config(folder, folder, str(folder / "cache"), corpus=corpus, cache=EXACT)
    assert run_inline("precompute", config)[0] == 0
    return folder / "cache"


def configured(folder: Path, parent: Path, /, **sections: Any) -> Path:
    """Write the configuration of a round trip."""
    folder.mkdir(parents=True, exist_ok=True)
    given = {"clips": {"select": "first"}, "cache": EXACT, **sections}
    corpus = {"source": f"cache://{parent}", **given.pop("corpus", {})}
    return make_config(folder, parent, str(folder / "child"), corpus=corpus, **given)


@pytest.fixture(scope="module")
def child(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("child")
    status, printed = run_inline("precompute", configured(folder, parent))
    assert status == 0, printed
    assert "corpus   6 videos" in printed
    return folder / "child"


def encoder_of(cache: Any, raw: dict[str, Any]) -> Any:
    module, config = encoders.resolve(raw)
    return module.build(config, spec=cache.spec, device=CPU)


def test_clips_are_what_the_floats_decode_and_encode_to(parent: Path, child: Path) -> None:
    old, new = latentcache.open_cache(str(parent)), latentcache.open_cache(str(child))
    own = encoder_of(old, {"kind": "dct", "store": "mean"})
    assert list(new.table(["key"])["key"]) == list(old.table(["key"])["key"])
    for key, recorded in zip(*new.table(["key", "drift"]).to_pydict().values(), strict=True):
        stored = old.stored(key)
        values = own.decode_values(stored[None])
        expected = own.encode_values(values)[0, :16]
        assert torch.equal(new.stored(key), expected)
        through_uint8 = own.encode(own.decode(stored[None]))[0, :16]
        assert not torch.equal(new.stored(key), through_uint8)
        assert recorded == pytest.approx(drift(stored, expected), rel=1e-9)
        assert recorded < drift(stored, through_uint8)


def test_captions_kept_columns_and_times_are_carried_over(parent: Path, child: Path) -> None:
    names = ["key", "caption", "score", "frames", "start_s", "end_s", "height", "width", "status"]
    old, new = (latentcache.open_cache(str(url)).table(names) for url in (parent, child))
    assert old.drop_columns(["start_s", "end_s"]).equals(new.drop_columns(["start_s", "end_s"]))
    for name in ("start_s", "end_s"):
        assert new[name].to_pylist() == pytest.approx(old[name].to_pylist())


def test_kept_urls_of_a_parent_lose_secrets_that_it_has_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_corpus(tmp_path / "corpus", 1, frames=10)
    table = {"video": ["corpus/v0.mp4"], "of": [{"url": "https://u:PASS@h/a?id=7&sig=SIG"}]}
    pq.write_table(pa.Table.from_pydict(table), tmp_path / "table.parquet")
    corpus = {"source": str(tmp_path / "table.parquet"), "keep": ["of"]}
    config = make_config(tmp_path, tmp_path, str(tmp_path / "cache"), corpus=corpus, cache=EXACT)
    with monkeypatch.context() as patch:
        patch.setattr("latentcache.corpus.source_table.keepable", lambda _, column: column)
        assert run_inline("precompute", config)[0] == 0
    assert "PASS" in str(latentcache.open_cache(str(tmp_path / "cache")).table().to_pylist())
    found = read_corpus(CorpusConfig(source=f"cache://{tmp_path / 'cache'}"))
    assert found.table["of"][0].as_py() == {"url": "https://h/a?id=7&sig=***"}


def test_the_cache_says_how_its_latents_came_to_be(parent: Path, child: Path) -> None:
    fingerprint = json.loads((parent / "cache.json").read_text())["fingerprint"]
    made = json.loads((child / "cache.json").read_text())
    assert made["provenance"] == {"kind": "roundtrip", "parent": fingerprint}
    (pinned,) = json.loads((child / "generations" / "000001.json").read_text())["parents"]
    assert (pinned["fingerprint"], pinned["generation"]) == (fingerprint, 1)
    latentcache.open_cache(str(child), expect={"provenance": "roundtrip", "channels": 16})
    latentcache.open_cache(str(parent), expect={"provenance": "encoder"})
    with pytest.raises(
        CacheError, match=r"their provenance is roundtrip, of the cache .*encoder is"
    ):
        latentcache.open_cache(str(child), expect={"provenance": "encoder"})
    with pytest.raises(ConfigError, match=r"no latents come from 'roundtrips'. Did you mean"):
        latentcache.open_cache(str(child), expect={"provenance": "roundtrips"})


def test_it_is_an_ordinary_cache(parent: Path, child: Path, tmp_path: Path) -> None:
    """Nothing is done twice, what is missing is resumed to the same bits, and verify repeats clips."""
    again = tmp_path / "child"
    shutil.copytree(child, again)
    config = configured(tmp_path, parent)
    assert "nothing" in run_inline("precompute", config)[1].lower()
    (bucket,) = (path for path in (again / "latents").iterdir() if path.is_dir())
    (bucket / "c" / "1" / "0/0/0/0").unlink()
    next((again / "samples").rglob("*1.parquet")).unlink()
    assert run_inline("resume", again, "corpus.decoder.kind=dct")[0] == 0
    assert "decoder" not in json.loads((again / "cache.json").read_text())["config"]["corpus"]
    status, printed = run_inline("verify", again, "--sample", "4")
    assert status == 0, printed
    before, after = latentcache.open_cache(str(child)), latentcache.open_cache(str(again))
    assert all(torch.equal(before.stored(n), after.stored(n)) for n in range(len(before)))
    assert len(after) == len(before)


def test_the_code_of_the_page_runs(child: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks(PAGES["docs/cache-as-corpus.md"], "python")
    exec(re.sub(r'"s3://[^"]*"', repr(str(child)), block.text), {})
    assert "drift: double" in capsys.readouterr().out


@pytest.mark.long
def test_a_parent_that_grew_is_taken_in(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", 1, frames=5)
    for name in ("page.mp4", "short.mp4", "picture.png"):
        (corpus / name).unlink()
    parent = make_config(tmp_path, corpus, str(tmp_path / "parent"))
    parent = parent.rename(tmp_path / "parent.yaml")
    assert run_inline("precompute", parent)[0] == 0
    config = configured(tmp_path / "made", tmp_path / "parent")
    assert run_inline("precompute", config)[0] == 0
    write_video(corpus / "w.mp4", moving_pattern(5, 64, 96, seed=7))
    (corpus / "v0.txt").write_text("other words")
    assert run_inline("precompute", parent)[0] == 0
    status, printed = run_inline("precompute", config)
    assert status == 0, printed
    cache = latentcache.open_cache(str(tmp_path / "made" / "child"))
    assert cache.table(["key", "caption"]).to_pydict() == {
        "key": ["v0.mp4#0", "w.mp4#0"],
        "caption": ["other words", None],
    }
    made = json.loads((tmp_path / "made/child/generations/000002.json").read_text())
    assert [parent["generation"] for parent in made["parents"]] == [2]


def test_another_encoder_transcodes_and_sizes_may_change(parent: Path, tmp_path: Path) -> None:
    config = configured(
        tmp_path,
        parent,
        clips={"select": "first", "size": [32, 32]},
        encoder={"kind": "dct", "store": "mean", "tiling": {"tile": [32, 32], "overlap": [8, 8]}},
    )
    assert run_inline("precompute", config)[0] == 0
    cache = latentcache.open_cache(str(tmp_path / "child"), expect={"provenance": "roundtrip"})
    assert cache.table(["drift"])["drift"].null_count == len(cache)  # of other pixels
    assert cache.stored(0).shape == (16, 2, 4, 4)


def test_an_encoder_of_somebodys_own_is_not_imported_unasked(tmp_path: Path) -> None:
    kind = "tests.tools.encoders.never_imported"
    parent = tmp_path / "parent"
    corpus = make_corpus(tmp_path / "corpus", 1, frames=5)
    assert run_inline("precompute", make_config(tmp_path, corpus, str(parent)))[0] == 3
    data = json.loads((parent / "cache.json").read_text())
    from latentcache.format import checksum

    data.pop(next(name for name in data if "crc" in name))
    data["config"]["encoder"] = {"kind": kind}
    (parent / "cache.json").write_bytes(checksum.seal_json(data))
    status, printed = run_inline("precompute", configured(tmp_path / "made", parent))
    assert status == 2
    assert f"name it yourself, as corpus.decoder.kind={kind}" in printed
    config = configured(tmp_path / "made", parent, corpus={"decoder": {"kind": kind}})
    status, printed = run_inline("precompute", config)
    assert f"there is no module '{kind}'" in printed
    made = yaml.safe_load(config.read_text())
    assert made["corpus"]["decoder"] == {"kind": kind}


def test_what_is_wrong_with_a_parent_is_one_message(parent: Path, tmp_path: Path) -> None:
    def said(**sections: Any) -> str:
        status, printed = run_inline("precompute", configured(tmp_path, parent, **sections))
        assert status == 2, printed
        return printed

    assert "there is no cache here" in said(corpus={"source": "cache:///no/where"})
    assert "has kept no column 'no'" in said(corpus={"keep": ["no"]})
    assert "corpus.source is a cache" in said(corpus={"columns": {"video": "a"}})
    assert "needs the file system memory" in said(corpus={"source": "cache://memory://x"})
    assert "the column drift" in said(quality={"min_psnr": 20})


def test_a_damaged_clip_fails_alone_and_a_lost_parent_stops_the_run(
    parent: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "parent"
    shutil.copytree(parent, copy)
    row = latentcache.open_cache(str(copy)).table().slice(1, 1).to_pylist()[0]
    path = copy / "latents" / row["bucket"] / "c" / str(row["shard"]) / "0/0/0/0"
    data = bytearray(path.read_bytes())
    data[row["offset"] + row["length"] // 2] ^= 1
    path.write_bytes(data)
    status, printed = run_inline("precompute", configured(tmp_path / "made", copy))
    assert status == 3, printed
    table = latentcache.open_cache(str(tmp_path / "made" / "child")).table(["key", "reason"])
    failed = [row for row in table.to_pylist() if row["reason"]]
    assert failed == [{"key": row["key"], "reason": "corrupt"}]
    path.unlink()
    status, printed = run_inline("precompute", configured(tmp_path / "gone", copy))
    assert status == 1
    assert "the corpus cannot be read" in printed


@needs_taef2
@pytest.mark.long
def test_real_taef2_drifts_by_what_the_test_finds(tmp_path: Path) -> None:
    source = SHARED / "videos" / "hiker.mp4"
    encoder = {"kind": "taesd", "dtype": "float32", "store": "mean"}
    encoder |= {half: str(path) for half, path in TAEF2.items()}
    clips = {"frames": 1, "size": [480, 720], "select": "first"}
    parent = make_config(
        tmp_path,
        source,
        str(tmp_path / "parent"),
        clips=clips,
        cache=EXACT,
        quality={"every": 0},
    )
    config = configured(tmp_path / "made", tmp_path / "parent", clips=clips)
    for path in (parent, config):
        made = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump({**made, "encoder": encoder}))
        assert run_inline("precompute", path)[0] == 0
    old = latentcache.open_cache(str(tmp_path / "parent"))
    new = latentcache.open_cache(str(tmp_path / "made" / "child"))
    recorded = new.table(["drift"])["drift"][0].as_py()
    own = encoder_of(old, encoder)
    stored = old.stored(0)
    floats = drift(stored, own.encode_values(own.decode_values(stored[None]))[0])
    levels = drift(stored, own.encode(own.decode(stored[None]))[0])
    assert floats is not None
    assert levels is not None
    assert recorded == pytest.approx(floats, rel=1e-6)
    assert recorded < levels
    assert (floats, levels) == pytest.approx((0.305, 0.315), rel=0.1)


def test_values_per_frame_follow_the_frames_that_are_taken(tmp_path: Path) -> None:
    """They are cut from those of the other cache's clips, at the frames that are encoded again."""
    make_corpus(tmp_path / "corpus", 1, frames=10)
    source = {"video": ["corpus/v0.mp4"], "actions": [[[float(n), 0.5] for n in range(10)]]}
    pq.write_table(pa.table(source), tmp_path / "table.parquet")
    corpus = {"source": str(tmp_path / "table.parquet"), "per_frame": ["actions"]}
    config = make_config(tmp_path, tmp_path, str(tmp_path / "cache"), corpus=corpus, cache=EXACT)
    assert run_inline("precompute", config)[0] == 0
    old = latentcache.open_cache(str(tmp_path / "cache"))
    row = old.table(["frames", "start_s", "end_s"]).slice(1, 1).to_pylist()[0]
    rate = row["frames"] / (row["end_s"] - row["start_s"])
    taken = {"frames": 1, "fps": rate / 2, "select": "all"}
    status, printed = run_inline(
        "precompute", configured(tmp_path / "new", tmp_path / "cache", clips=taken)
    )
    assert status == 0, printed
    new = latentcache.open_cache(str(tmp_path / "new" / "child"))
    for sample in new:
        parent = old[sample["source"]]
        number = int(sample["key"].rsplit("#", 1)[1])
        assert torch.equal(sample["actions"], parent["actions"][2 * number : 2 * number + 1])
    assert len(new) > len(old)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"corpus": {"per_frame": ["actions"]}}, "corpus.per_frame names columns of a table"),
        ({"clips": {"resize": {"library": "pillow"}}}, "clips.resize repeats another program's"),
        ({"clips": {"sampling": "floor", "fps": 4}}, "clips.sampling: floor counts the frames"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(
    parent: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    status, printed = run_inline("precompute", configured(tmp_path, parent, **changes))
    assert (status, said in printed) == (2, True), printed
    assert not (tmp_path / "child").exists()
