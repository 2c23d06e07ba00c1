"""A plan that was cut off: what was probed is not probed again, and the plan is the same."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from latentcache.config.files import load_config
from latentcache.config.sections import Config
from latentcache.corpus import saved_probes
from latentcache.corpus.saved_probes import FOLDER, SavedProbes
from latentcache.decoders.pool import DecodePool
from latentcache.errors import StorageError
from latentcache.format.manifest import read_manifest
from latentcache.inspecting.leftovers import find_leftovers
from latentcache.planning.plan import Plan
from latentcache.planning.planner import Hooks, grow_cache, plan_corpus
from latentcache.planning.recipe import resolve_encoder
from latentcache.storage.folder import Storage
from tests.tools.caches import ROOT, make_config, make_corpus, run_inline
from tests.tools.videos import moving_pattern, write_video

#: Not with `kept_pools`: a process that is warm answers what a stopped plan has not come to.
pytestmark = pytest.mark.slow

SOURCES = 11


class Stopped(BaseException):
    """As KeyboardInterrupt, which pytest takes for its own."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("probes") / "corpus", SOURCES - 3)


@pytest.fixture
def config(corpus: Path, tmp_path: Path) -> Config:
    return load_config(str(make_config(tmp_path, corpus, str(tmp_path / "cache"))))


@pytest.fixture
def probed() -> Iterator[list[str]]:
    """Names of the files that were probed."""
    names: list[str] = []
    probe = DecodePool.probe

    def spy(pool: DecodePool, url: str, kind: str, **options: bool) -> object:
        if not options.get("identity_only"):
            names.append(Path(url).name)
        return probe(pool, url, kind, **options)

    with mock.patch.object(DecodePool, "probe", spy):
        yield names


def plan(config: Config, saved: SavedProbes | None, stop_after: int | None = None) -> Plan:
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if done == stop_after:
            raise Stopped

    return plan_corpus(config, resolve_encoder(config)[0], on_probed=count, saved=saved)


def saved_in(config: Config, **changes: int) -> SavedProbes:
    conditions = {"max_pixels": config.corpus.max_pixels, **changes}
    return SavedProbes(Storage(config.cache.url), **conditions)


def stop_planning(config: Config, after: int) -> None:
    with pytest.raises(Stopped):
        plan(config, saved_in(config), after)


def stop_growing(config: Config, after: int) -> None:
    """As `stop_planning`, in what `precompute` does, which looks at every file's stamp."""
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if done == after:
            raise Stopped

    with pytest.raises(Stopped):
        grow_cache(config, hooks=Hooks(on_probed=count))


def with_corpus(config: Config, **changes: object) -> Config:
    corpus = {**config.corpus.model_dump(), **changes}
    return config.model_copy(update={"corpus": type(config.corpus).model_validate(corpus)})


def tables(config: Config) -> list[Path]:
    return sorted(Path(config.cache.url, FOLDER).glob("*"))


def not_saved(config: Config, names: list[str]) -> list[str]:
    """Which of the sources the cache's storage has nothing of."""
    found = pa.concat_tables(pq.read_table(path) for path in tables(config))
    saved = set(found["file_digest"].to_pylist())
    corpus = Path(config.corpus.source)
    return [n for n in sorted(names) if saved_probes._digest(str(corpus / n)) not in saved]


def test_a_plan_that_was_cut_off_goes_on_and_is_the_same(config: Config, probed: list[str]) -> None:
    whole = plan(config, None)
    every = [*probed]
    assert len(every) == SOURCES
    stop_planning(config, 6)
    stop_planning(config, 9)
    # Of nine, page.mp4 is no video: failures are tried again. Others may have been under way.
    left = not_saved(config, every)
    assert "page.mp4" in left
    assert len(left) <= 3
    probed.clear()
    saved = saved_in(config)
    again = plan(config, saved)
    assert sorted(probed) == left
    assert saved.num_found == SOURCES - len(left)
    assert again.digest() == whole.digest()
    assert [*again.buckets.items()] == [*whole.buckets.items()]
    assert again.rejected == whole.rejected


KILLED = """
import os, sys
from latentcache.corpus import saved_probes
from latentcache.config.files import load_config
from latentcache.planning.planner import plan_corpus
from latentcache.planning.recipe import resolve_encoder
from latentcache.storage.folder import Storage

saved_probes.FLUSH_INTERVAL_S = 0.0
config, left = load_config(sys.argv[1]), 6

def count():
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), 9)

saved = saved_probes.SavedProbes(Storage(config.cache.url), config.corpus.max_pixels)
plan_corpus(config, resolve_encoder(config)[0], on_probed=count, saved=saved)
"""


@pytest.mark.long
def test_a_plan_that_was_killed_goes_on(config: Config, probed: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "config.yaml")]
    assert subprocess.run(command, cwd=ROOT, timeout=60).returncode == -signal.SIGKILL
    plan(config, saved_in(config))
    assert len(probed) == SOURCES - 5  # of six, page.mp4 is no video


def test_a_source_that_failed_is_probed_again(config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "repaired"
    folder.mkdir()
    for name in "abc":
        write_video(folder / f"{name}.mp4", moving_pattern(5, 64, 96, seed=1))
    whole = (folder / "a.mp4").read_bytes()
    (folder / "a.mp4").write_bytes(whole[: len(whole) // 3])
    changed = with_corpus(config, source=str(folder))
    stop_planning(changed, 3)
    (folder / "a.mp4").write_bytes(whole)
    assert plan(changed, saved_in(changed)).num_clips == 3


@pytest.mark.long
def test_a_table_that_says_the_shape_is_trusted_as_ever(
    config: Config, corpus: Path, tmp_path: Path
) -> None:
    names = ("frames", "fps", "height", "width")
    rows = [
        {"video": str(corpus / f"v{n}.mp4"), **dict(zip(names, (33, 8.0, 480, 640), strict=True))}
        for n in range(3)
    ]
    listed = tmp_path / "listed.jsonl"
    listed.write_text("\n".join(map(json.dumps, rows)))
    stop_planning(config, 9)
    columns = {"video": "video", **{name: name for name in names}}
    changed = with_corpus(config, source=str(listed), columns=columns)
    found = plan(changed, saved := saved_in(changed))
    assert saved.num_found == 0  # its frames must not be those of the file's header
    assert found.digest() == plan(changed, None).digest()
    stop_planning(changed, 3)
    assert plan(changed, saved := saved_in(changed)).digest() == found.digest()
    assert saved.num_found == 3


def test_files_that_have_changed_since_are_all_probed_again(
    config: Config, probed: list[str], tmp_path: Path
) -> None:
    changed = with_corpus(config, source=str(make_corpus(tmp_path / "changing", 3)))
    stop_planning(changed, 6)
    write_video(tmp_path / "changing/v1.mp4", moving_pattern(41, 64, 96, seed=5))
    probed.clear()
    assert plan(changed, saved := saved_in(changed)).digest() == plan(changed, None).digest()
    assert saved.num_found == 0
    assert len(probed) == 2 * 6


def test_a_source_that_was_another_kind_is_probed_again(config: Config, tmp_path: Path) -> None:
    frames = [Image.fromarray(frame) for frame in moving_pattern(9, 64, 96, seed=3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=125)
    kinds = {}
    for kind in ("image", "video"):
        kinds[kind] = tmp_path / f"{kind}.jsonl"
        kinds[kind].write_text(json.dumps({kind: str(tmp_path / "a.gif")}))
    image, video = (
        with_corpus(config, source=str(path), columns={kind: kind}) for kind, path in kinds.items()
    )
    stop_planning(image, 1)
    (bucket,) = plan(video, saved_in(video)).buckets
    assert bucket.frames == 5


@pytest.mark.parametrize(
    "what",
    [
        "flipped",
        *(pytest.param(w, marks=pytest.mark.long) for w in ("other_limit", "old", "foreign")),
    ],
)
def test_what_does_not_hold_any_more_is_passed_over(
    what: str, config: Config, probed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_planning(config, 9)
    (path,) = tables(config)
    saved = saved_in(config)
    if what == "other_limit":
        saved = saved_in(config, max_pixels=config.corpus.max_pixels - 1)
    elif what == "old":
        later = time.time() + saved_probes.MAX_AGE_S + 1
        monkeypatch.setattr(saved_probes.time, "time", lambda: later)
    elif what == "flipped":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        path.write_bytes(saved_probes.to_parquet(pa.table({"url": ["x"]})))
    probed.clear()
    assert plan(config, saved).digest() == plan(config, None).digest()
    assert len(probed) == 2 * SOURCES
    assert saved.num_found == 0


def test_precompute_goes_on_says_so_and_clears_up(config: Config, tmp_path: Path) -> None:
    stop_growing(config, 9)
    num_saved = sum(pq.read_metadata(path).num_rows for path in tables(config))
    assert (
        num_saved >= SOURCES - 3
    )  # one of the nine cannot be opened; the tenth may have been done
    status, printed = run_inline("precompute", tmp_path / "config.yaml")
    assert status == 3
    assert f"{num_saved} of them were probed before, by a run that was stopped" in printed
    assert not tables(config)
    storage = Storage(config.cache.url)
    saved = saved_in(config)
    saved.add("x", "video", False, {"identity": "y"})
    saved.flush()
    for age_s, of in ((0.0, "recent"), (2 * 3600.0, "temporary")):
        found = find_leftovers(storage.files(), read_manifest(storage), time.time() + age_s)
        assert [file.path for file in getattr(found, of)] == [f"{FOLDER}/{tables(config)[0].name}"]
        assert not found.foreign


def test_status_says_that_the_corpus_is_being_probed(config: Config) -> None:
    status, printed = run_inline("status", config.cache.url)
    assert (status, "there is no cache here" in printed) == (2, True)
    stop_planning(config, 5)
    status, printed = run_inline("status", config.cache.url)
    assert status == 2
    assert "a corpus is being probed for this cache" in printed
    assert "1 tables of what was found" in printed


def test_storage_that_refuses_is_found_before_the_corpus_is_read(
    config: Config, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file")
    status, printed = run_inline("precompute", tmp_path / "config.yaml", "corpus.source=/not/there")
    assert status == 2
    assert "cache" in printed
    assert "/not/there" not in printed
    saved = saved_in(config)
    saved.add("x", "video", False, {"identity": "y"})
    with pytest.raises(StorageError):
        saved.flush()


def test_another_recipe_is_refused_before_the_corpus_is_read(
    config: Config, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    assert run_inline("precompute", path)[0] == 3
    status, printed = run_inline("precompute", path, "cache.dtype=float16", "corpus.source=/gone")
    assert status == 2
    assert "dtype: bfloat16 in the cache, float16 now" in printed
    assert not tables(config)
