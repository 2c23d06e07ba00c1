"""Sources of which copies have some clips only: what copies and merges know of them, and what they take."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from latentcache.format.manifest import read_manifest
from latentcache.planning.known import KnownCache
from latentcache.planning.known_sources import KnownSource
from latentcache.planning.planned import PlannedCache, PlanReader
from latentcache.storage.folder import Storage
from tests.tools import planned as tool
from tests.tools.caches import run_inline
from tests.tools.copied import VIDEOS, clips_of, failed_of, open_again
from tests.tools.planned import fill_cache, plan_cache

pytestmark = pytest.mark.usefixtures("kept_pools")

SHARED = "have the same name and other content in several caches"


def run(job: str, *args: object, status: int = 0) -> str:
    found, printed = run_inline(job, *args)
    assert found == status, printed
    return printed


def make(
    folder: Path,
    name: str,
    *,
    seed: int,
    others: frozenset[int] = frozenset(),
    rejected: frozenset[int] = frozenset(),
) -> PlannedCache:
    """A cache of videos of two clips. others: those of other content; rejected: that give no clip."""

    def source(number: int, usual: Any = tool._source) -> dict[str, Any]:
        row = usual(number)
        if row["kind"] != "image":
            row |= {"frames": 10, "duration_s": 0.4}
        if number in others:
            row["identity"] = f"other{number}"
        reason = "unreadable" if number in rejected or row["reason"] else None
        return {**row, "reason": reason}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tool, "_source", source)
        planned = plan_cache(folder, str(folder / name))
    fill_cache(planned, seed=seed)
    return planned


def lose(planned: PlannedCache, *shards: int) -> None:
    """Make it as if some shards of videos were still to be encoded."""
    folder = Path(planned.storage.url)
    for number in shards:
        (folder / f"samples/{VIDEOS}/{number:06d}.parquet").unlink()
        (folder / f"latents/{VIDEOS}/c/{number}/0/0/0/0").unlink()
    (folder / "index.parquet").unlink(missing_ok=True)


def known(url: object) -> Mapping[str, KnownSource]:
    storage = Storage(str(url))
    manifest = read_manifest(storage)
    return KnownCache(storage, manifest, PlanReader(storage, manifest)).sources


def clips(url: object) -> dict[str, Any]:
    return clips_of(open_again(Storage(str(url))))


def keys_of_source(found: Mapping[str, Any], name: str) -> set[str]:
    return {key for key in found if key.startswith(f"{name}#")}


@pytest.fixture(name="half")
def half_fixture(tmp_path: Path) -> Path:
    """A cache whose second shard is still to be encoded: a clip of v1, and both of v2."""
    lose(make(tmp_path, "half", seed=1), 1)
    return tmp_path / "half"


def test_a_copy_knows_the_content_of_sources_of_which_it_has_some_clips(
    half: Path, tmp_path: Path
) -> None:
    whole = known(half)
    run("copy", half, tmp_path / "copy", "--allow-unfinished")
    copy = known(tmp_path / "copy")
    assert "v2" not in copy
    partly = {name for name, source in copy.items() if source.is_partial}
    assert partly == {"v1"}
    for name, source in copy.items():
        assert (source.identity, source.url) == (whole[name].identity, whole[name].url)


def test_a_copy_of_a_copy_still_lacks_what_was_to_be_encoded(half: Path, tmp_path: Path) -> None:
    run("copy", half, tmp_path / "copy", "--allow-unfinished")
    printed = run("copy", tmp_path / "copy", tmp_path / "again")
    assert known(tmp_path / "again") == known(tmp_path / "copy")
    num = sum(source.is_partial for source in known(tmp_path / "copy").values())
    assert num
    assert f"partial  {num} sources have some of their clips only" in printed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v1", "v5"])
def test_a_copy_of_some_sources_of_a_copy_knows_which_lack_clips(
    name: str, half: Path, tmp_path: Path
) -> None:
    run("copy", half, tmp_path / "copy", "--allow-unfinished")
    run("copy", tmp_path / "copy", tmp_path / "some", "--where", f"source = '{name}'")
    assert known(tmp_path / "some") == {name: known(tmp_path / "copy")[name]}


def test_a_condition_that_tells_clips_of_such_a_source_apart_is_refused(
    half: Path, tmp_path: Path
) -> None:
    run("copy", half, tmp_path / "copy", "--allow-unfinished")
    partial = [name for name, source in known(tmp_path / "copy").items() if source.is_partial]
    some = min(keys_of_source(clips(tmp_path / "copy"), partial[0]))
    for where in ("start < 7", f"key = '{some}'", "start_s >= 0"):
        printed = run("copy", tmp_path / "copy", tmp_path / "some", "--where", where, status=2)
        assert "was copied from a cache that was not finished: --where" in printed
        assert f"latentcache precompute CONFIG.yaml cache.url={tmp_path / 'copy'}" in printed
        assert not (tmp_path / "some").exists()
    (tmp_path / "keys").write_text(f"{some}\n")
    run("copy", tmp_path / "copy", tmp_path / "some", "--keys", tmp_path / "keys")
    assert {n: s.is_partial for n, s in known(tmp_path / "some").items()} == {partial[0]: False}


@pytest.mark.slow
def test_a_whole_cache_and_a_copy_of_a_part_of_it_merge_into_the_whole(
    half: Path, tmp_path: Path
) -> None:
    make(tmp_path, "whole", seed=1)
    run("copy", half, tmp_path / "copy", "--allow-unfinished")
    both = tmp_path / "whole", tmp_path / "copy"
    num = len(clips(tmp_path / "copy")) + len(failed_of(open_again(Storage(str(both[1])))))
    num -= sum(source.is_rejected for source in known(tmp_path / "copy").values())
    for number, urls in enumerate((both, both[::-1])):
        for words in ([], ["--prefer", "first"], ["--prefer", "last"]):
            target = tmp_path / f"all{number}{''.join(words)}"
            printed = run("merge", *urls, "-o", target, *words)
            assert f"{num} clips that several caches have are taken once" in printed
            assert "left out" not in printed
            assert "partial" not in printed
            assert clips(target) == clips(both[0])
            assert known(target) == known(both[0])


def test_copies_of_parts_of_other_content_are_not_mixed(tmp_path: Path) -> None:
    for name, shard, others in (("one", 0, frozenset[int]()), ("two", 1, frozenset({1, 4}))):
        lose(make(tmp_path, name, seed=shard, others=others), shard)
        run("copy", tmp_path / name, tmp_path / f"{name}-copy", "--allow-unfinished")
    urls = [tmp_path / "one-copy", tmp_path / "two-copy"]
    there = {*known(urls[0])} & {*known(urls[1])} & {"v1", "v4"}
    printed = run("merge", *urls, "-o", tmp_path / "all", status=2)
    assert f"{len(there)} sources {SHARED}: {', '.join(sorted(there))}" in printed
    for prefer, right, wrong in (("first", *urls), ("last", *urls[::-1])):
        target = tmp_path / prefer
        printed = run("merge", *urls, "-o", target, "--prefer", prefer)
        for name in there:
            mine, theirs = (keys_of_source(clips(url), name) for url in (target, right))
            assert mine == theirs
            assert all(clips(target)[key] == clips(right)[key] for key in mine)
        of_other = set[str]().union(*(keys_of_source(clips(wrong), name) for name in there))
        failed = {key for key, _ in failed_of(open_again(Storage(str(wrong))))}
        of_other |= set[str]().union(*(keys_of_source(dict.fromkeys(failed), n) for n in there))
        assert f"left out {len(of_other)} clips of {len(there)} sources" in printed


@dataclass
class Has:
    """What a cache has of a source: the bytes of ok clips, and keys of failed and waiting ones."""

    identity: str | None
    is_partial: bool
    is_rejected: bool
    ok: dict[str, Any] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    waiting: set[str] = field(default_factory=set)


def has(url: Path, of_source: Mapping[str, str]) -> dict[str, Has]:
    """Look at a cache. of_source: of each key."""
    found = {n: Has(s.identity, s.is_partial, s.is_rejected) for n, s in known(url).items()}
    for key, bits in clips(url).items():
        found[of_source[key]].ok[key] = bits
    for key, _ in failed_of(open_again(Storage(str(url)))):
        if key in of_source and not found[of_source[key]].is_rejected:
            found[of_source[key]].failed.add(key)
    return found


def merged(caches: list[dict[str, Has]], prefer: str) -> tuple[dict[str, Has], int, int] | None:
    """What a merge is to hold, how many clips it takes once, and leaves out; None: it is refused."""
    expected: dict[str, Has] = {}
    num_twice = num_other = 0
    for name in {name for cache in caches for name in cache}:
        mine = [cache[name] for cache in caches if name in cache]
        taking = [each for each in mine if not each.is_rejected]
        if not taking:
            expected[name] = mine[0]
            continue
        right = taking[-1 if prefer == "last" else 0].identity
        owners = [each for each in taking if each.identity == right]
        if not prefer and len(owners) < len(taking):
            return None
        others = [each for each in taking if each.identity != right]
        num_other += sum(len(each.ok) + len(each.failed) for each in others)
        ok: dict[str, Any] = {}
        for each in owners:
            ok = each.ok | ok
        failed = set[str]().union(*(each.failed for each in owners)) - {*ok}
        num_twice += sum(len(each.ok) + len(each.failed) for each in owners) - len(ok) - len(failed)
        is_waiting = bool(set[str]().union(*(each.waiting for each in owners)) - {*ok, *failed})
        is_partial = is_waiting or all(each.is_partial for each in owners)
        if ok or failed or not is_waiting:
            expected[name] = Has(right, is_partial, False, ok, failed)
    return expected, num_twice, num_other


def number_in(printed: str, pattern: str) -> int:
    found = re.search(pattern, printed)
    return int(found[1]) if found else 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_merges_of_copies_hold_what_they_are_to_hold(seed: int, tmp_path: Path) -> None:
    """Of three caches, some of other content, some of whose sources are rejected, some unfinished."""
    rng = random.Random(seed)
    chance = rng.choice([0.0, 0.15])
    of_source: dict[str, str] = {}
    urls, caches = [], []
    for number in range(3):
        others = frozenset(n for n in range(9) if rng.random() < chance)
        rejected = frozenset(n for n in range(9) if rng.random() < 0.15)
        planned = make(tmp_path, f"c{number}", seed=number, others=others, rejected=rejected)
        for shard in planned.planned_shards():
            rows = planned.plan.rows(shard)
            columns = rows["key"].to_pylist(), rows["source"].to_pylist()
            of_source.update(zip(*columns, strict=True))
        url = tmp_path / f"c{number}"
        before = has(url, of_source)
        shards = [s.number for s in planned.planned_shards() if s.bucket == VIDEOS]
        lose(planned, *rng.sample(shards, rng.randrange(3)))
        for again in range(rng.randrange(1, 3)):
            target = tmp_path / f"c{number}-{again}"
            run("copy", url, target, "--allow-unfinished")
            url = target
        there = has(url, of_source)
        for name, source in before.items():
            left = there.get(name, Has(source.identity, False, False))
            num = len(left.ok) + len(left.failed)
            is_whole = num == len(source.ok) + len(source.failed)
            assert (name in there) == (is_whole or num > 0)
            assert left.is_partial == (name in there and not is_whole)
            assert left.identity == source.identity
        if rng.random() < 0.3:
            url = tmp_path / f"c{number}"
            for name, source in before.items():
                there.setdefault(name, replace(source, ok={}, failed=set()))
                waiting = {*source.ok, *source.failed} - {*there[name].ok, *there[name].failed}
                there[name] = replace(there[name], is_partial=False, waiting=waiting)
        urls.append(url)
        caches.append(there)
    for prefer in ("", "first", "last"):
        expected, target = merged(caches, prefer), tmp_path / f"all-{prefer}"
        words = ["-o", target, "--allow-unfinished", *(["--prefer", prefer] if prefer else [])]
        printed = run("merge", *urls, *words, status=2 if expected is None else 0)
        if expected is None:
            assert SHARED in printed
            continue
        assert has(target, of_source) == expected[0]
        assert number_in(printed, r"(\d+) clips that several caches") == expected[1]
        assert number_in(printed, r"left out (\d+) clips") == expected[2]
