"""Fields come along when clips are copied: by key, each clip has the values that it had before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import latentcache
from latentcache.config.fields import parse_field
from latentcache.copying.field_rows import FieldSource
from latentcache.core.dtypes import as_numpy, numpy_dtype
from latentcache.format.fields.commit import Sample, commit_field_shard
from latentcache.format.fields.manifest import read_field
from latentcache.format.fields.snapshot import publish_field
from latentcache.inspecting.verify import verify
from latentcache.planning.create import take_step
from latentcache.planning.fields.planned import create_field, plan_field
from latentcache.planning.planned import PlannedCache
from latentcache.planning.step import Step
from latentcache.storage.folder import Storage
from tests.copying.lab import CopyLab, no_waiting, options_of
from tests.tools.caches import read_files, run_inline
from tests.tools.copied import clips_of, reopened
from tests.tools.faulty import places_of
from tests.tools.fields import (
    _add,
    add,
    cache_of,
    encoded,
    grow,
    padded,
    relabel,
    sources_of,
    text_field,
)
from tests.tools.places import Place, memory_backend
from tests.tools.planned import fill_cache

pytestmark = pytest.mark.usefixtures("kept_pools")

FORMATS = ("zarr", "parquet")
LENGTH = 128  # of which 64 are compressed together
TEXT = {"length": LENGTH, "pooled": True}
Values = dict[str, dict[str, bytes | None]]


def run(job: str, *args: object, status: int = 0) -> str:
    found, printed = run_inline(job, *args)
    assert found == status, printed
    return printed


def values_of(path: Path, names: Sequence[str]) -> Values:
    """What a reader gets of each clip, by key: the bytes of each field's arrays, None where it has none."""
    cache = latentcache.open_cache(str(path))
    return {str(cache[n]["key"]): _values(cache, n, names) for n in range(len(cache))}


def _values(cache: latentcache.Cache, n: int, names: Sequence[str]) -> dict[str, bytes | None]:
    found: dict[str, bytes | None] = {}
    for name in names:
        field = cache.field(name)
        for key in field.arrays:
            try:
                found[key] = as_numpy(cache.stored_samples([n])[0][key]).tobytes()
            except KeyError:
                found[key] = None
    return found


def make_grown(folder: Path, side: str = "right", **cache: Any) -> PlannedCache:
    """Three short shards with a text field: one text updated, one changed since, two clips without values.

    One text fails.
    """
    planned = cache_of(folder, [f"caption {n % 3}" for n in range(3)], shard_clips=4, **cache)
    planned = grow(planned, ["CLIP fails", "more " * 20])
    add(planned, status=3, umt5=text_field(**TEXT, side=side))
    planned = relabel(planned, {"v0#0": "updated"})
    add(planned, "--update", status=3, umt5=text_field(**TEXT, side=side))
    planned = relabel(planned, {"v0#0": "updated", "v1#0": "changed since"})
    return grow(planned, ["late", "later"])


@pytest.mark.slow
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("shard_format", FORMATS)
def test_a_text_field_is_the_same_after_compacting(
    shard_format: str, side: str, tmp_path: Path, counted: Path
) -> None:
    make_grown(tmp_path, side, format=shard_format)
    encoded(counted)
    before = values_of(tmp_path / "cache", ["umt5"])
    printed = run("compact", tmp_path / "cache", "--below=1")
    assert "3 clips of umt5 are still to be encoded" in printed, printed
    assert values_of(tmp_path / "cache", ["umt5"]) == before
    assert verify(Storage(str(tmp_path / "cache"))).problems == []
    assert encoded(counted) == []
    run("resume", tmp_path / "cache", "run.runner=local", status=3)
    assert encoded(counted) == ["changed since", "late", "later"]
    after = values_of(tmp_path / "cache", ["umt5"])
    changed = {key for key in before if after[key] != before[key]}
    assert after["v1#0"]["umt5"] == padded("changed since", LENGTH, side=side).tobytes()
    assert changed == {"v1#0", "g4_0#0", "g4_1#0"}


VISUAL = {"kind": "visual", "of": "first", "encoder": "latents"}
RAW = {"kind": "raw", "of": "clip"}
NAMES = ["umt5", "first", "pixels"]


def make_visual(planned: PlannedCache, name: str, settings: dict[str, Any], seed: int = 0) -> None:
    """Add a field of frames as a run leaves it, of random values; each third clip has failed."""
    created = create_field(plan_field(planned, name, parse_field(name, settings)))
    rng, manifest = np.random.default_rng(seed), planned.manifest
    for place in created.missing:
        layout = created.field.layouts(manifest, 1, place.bucket)[0]
        samples = []
        for row, clip in enumerate(planned.plan.shard(place).clips):
            sample = Sample(key=clip.key, row=row, choice=0, input_sha=clip.key)
            kind = numpy_dtype(layout.dtype)
            values = rng.integers(0, 60, layout.shape).astype(np.uint8).astype(kind)
            failed = rng.integers(3) == 0
            samples.append(
                sample.failed("corrupt", "damaged")
                if failed
                else Sample(**{**vars(sample), "arrays": [values]})
            )
        commit_field_shard(planned.storage, manifest, created.field, 1, place, samples)
    publish_field(planned.storage, created.field, manifest)


def make_full(folder: Path, **cache: Any) -> PlannedCache:
    """Two short shards with a text field and two fields of frames."""
    folder.mkdir(exist_ok=True)
    planned = cache_of(folder, [f"caption {n % 3}" for n in range(4)], shard_clips=6, **cache)
    planned = grow(planned, ["more " * 20, "most"])
    add(planned, umt5=text_field(**TEXT))
    make_visual(planned, "first", VISUAL)
    make_visual(planned, "pixels", RAW, seed=1)
    return planned


@pytest.mark.slow
@pytest.mark.parametrize("shard_format", FORMATS)
def test_fields_of_frames_come_along_in_either_format(
    shard_format: str, tmp_path: Path, counted: Path
) -> None:
    make_full(tmp_path, format=shard_format)
    encoded(counted)
    before = values_of(tmp_path / "cache", NAMES)
    frames = [values[name] for values in before.values() for name in NAMES[1:]]
    assert None in frames, "some clips have failed in a field"
    assert any(frames), "others have not"
    other = next(name for name in FORMATS if name != shard_format)
    run("copy", tmp_path / "cache", tmp_path / "same")
    run("copy", tmp_path / "cache", tmp_path / "other", "--format", other)
    run("compact", tmp_path / "cache", "--below=1")
    for name in ("cache", "same", "other"):
        assert values_of(tmp_path / name, NAMES) == before, name
        assert verify(Storage(str(tmp_path / name))).problems == [], name
    assert encoded(counted) == []
    nulls = [
        latentcache.open_cache(str(tmp_path / n)).field("umt5").nulls for n in ("cache", "other")
    ]
    assert nulls[0].keys() == nulls[1].keys() == {"null"}
    np.testing.assert_array_equal(*(as_bits(found["null"].arrays[0]) for found in nulls))
    # Nothing is left to do in them but what failed.
    printed = run("resume", tmp_path / "other", "run.runner=local", status=3)
    assert encoded(counted) == []
    assert "still to be encoded" not in printed


def as_bits(array: Any) -> Any:
    return np.asarray(array).view(np.uint8)


@pytest.mark.slow
def test_split_caches_with_fields_are_merged_again(tmp_path: Path, counted: Path) -> None:
    make_full(tmp_path)
    encoded(counted)
    before = values_of(tmp_path / "cache", NAMES)
    some = "key in ('v0#0', 'v3#0', 'g1_1#0')"
    run("copy", tmp_path / "cache", tmp_path / "one", "--where", some)
    run("copy", tmp_path / "cache", tmp_path / "two", "--where", f"not ({some})")
    assert values_of(tmp_path / "one", NAMES).keys() == {"v0#0", "v3#0", "g1_1#0"}
    printed = run("merge", tmp_path / "one", tmp_path / "two", "-o", tmp_path / "all")
    assert "fields   " in printed
    assert "left out" not in printed
    assert values_of(tmp_path / "all", NAMES) == before
    assert verify(Storage(str(tmp_path / "all"))).problems == []
    assert encoded(counted) == []


@pytest.mark.slow
def test_a_field_that_not_all_parents_have_alike_is_left_out_and_why_is_said(
    tmp_path: Path,
) -> None:
    one = cache_of(tmp_path, ["a", "b"])
    add(one, umt5=text_field(length=16), same=text_field(), mine=text_field())
    run("copy", tmp_path / "cache", tmp_path / "two", "--where", "key = 'v0#0'")
    two = reopened(
        PlannedCache(
            config=one.config, manifest=one.manifest, storage=Storage(str(tmp_path / "two"))
        )
    )
    for name in ("umt5", "mine"):
        run("drop_field", tmp_path / "two", name, "--yes")
    add(two, umt5=text_field(length=32))
    for more, is_there in ((["--dry-run"], False), ([], True)):
        printed = run("merge", tmp_path / "cache", tmp_path / "two", "-o", tmp_path / "all", *more)
        assert "fields   same" in printed
        assert f"the field umt5 is left out: {tmp_path}/two has it of another recipe: " in printed
        assert "length: 16" in printed
        assert f"the field mine is left out: {tmp_path}/two has no such field" in printed
        assert (tmp_path / "all").exists() == is_there
    assert latentcache.open_cache(str(tmp_path / "all")).field_names == ["same"]


@pytest.mark.slow
def test_a_damaged_value_is_named_and_tried_again(tmp_path: Path, counted: Path) -> None:
    planned = make_full(tmp_path)
    encoded(counted)
    before = values_of(tmp_path / "cache", NAMES)
    field = read_field(planned.storage, "umt5", planned.manifest)
    path = tmp_path / "cache" / field.layouts(planned.manifest, 1, "5x64x96")[0].folder
    (found,) = path.glob("*/c/1/*/*")
    data = bytearray(found.read_bytes())
    data[20] ^= 1
    found.write_bytes(bytes(data))
    printed = run("compact", tmp_path / "cache", "--below=1")
    assert "a value of the field umt5 is lost" in printed
    after = values_of(tmp_path / "cache", NAMES)
    assert [key for key in before if after[key] != before[key]] == ["g1_0#0"]
    run("resume", tmp_path / "cache", "--field", "umt5", "--retry-failed", "run.runner=local")
    assert encoded(counted) == ["more " * 20]
    assert values_of(tmp_path / "cache", NAMES) == before


def values_in(names: Sequence[str]) -> Any:
    """What `clips_of` says, with each field's values; nothing of fields where there is no clip yet."""

    def found(cache: latentcache.Cache) -> Any:
        clips = clips_of(cache)
        values = {
            str(cache[n]["key"]): _values(cache, n, names) if clips else {}
            for n in range(len(cache))
        }
        return {key: (facts, values[key]) for key, facts in clips.items()}

    return found


def options(place: Place) -> list[str]:
    return options_of(place, "cache.storage_options")


def lab_of(job: str, folder: Path) -> CopyLab:
    """Compacting a cache with fields, with a version for what it owes; or merging two halves."""
    backend = memory_backend()
    if job == "compact":
        make_grown(folder)
        start = read_files(folder / "cache")
        return CopyLab(
            start=start,
            command=lambda place: ("compact", place.url, "--below=1", *options(place)),
            clips=values_in(["umt5"]),
            backend=backend,
        )
    make_full(folder)
    some = "key in ('v0#0', 'v3#0', 'g1_1#0')"
    urls = []
    for name, where in (("one", some), ("two", f"not ({some})")):
        run("copy", folder / "cache", folder / name, "--where", where)
        place = backend.place()
        place.put(read_files(folder / name))
        urls.append(place.url)
    return CopyLab(
        start={},
        command=lambda place: ("merge", *urls, "-o", place.url, *options(place)),
        clips=values_in(NAMES),
        backend=backend,
        is_new=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "step"), [("compact", 13), pytest.param("merge", 31, marks=pytest.mark.long)]
)
def test_a_job_with_fields_is_stopped_at_its_writes(job: str, step: int, tmp_path: Path) -> None:
    with no_waiting():
        lab = lab_of(job, tmp_path)
        numbers = lab.count()
        assert numbers["torn"] > 8
        assert all(lab.run("torn", at) for at in range(5, numbers["torn"], step))


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("job", ["compact", "merge"])
def test_every_operation_of_a_job_with_fields_may_fail(
    job: str, tmp_path: Path, every: int
) -> None:
    with no_waiting():
        lab = lab_of(job, tmp_path)
        for kind, at in places_of(lab.count(), every):
            lab.run(kind, at)


@pytest.mark.slow
def test_caches_with_other_numbers_of_texts_are_merged(tmp_path: Path, counted: Path) -> None:
    texts = {"one": [["a", "b"], ["c"]], "two": [["d", None, "e", "f"], None]}
    before: Values = {}
    for name, lists in texts.items():
        folder = tmp_path / name
        folder.mkdir()
        planned = cache_of(folder, ["x"] * 2, texts=[[None]] * 2)
        planned = grow_named(planned, name, lists)
        add(planned, status=3, many=text_field(column="texts"))
        before |= choices_of(folder / "cache")
    encoded(counted)
    run("merge", tmp_path / "one/cache", tmp_path / "two/cache", "-o", tmp_path / "all")
    after = choices_of(tmp_path / "all")
    assert after == {key: value for key, value in before.items() if key in after}
    assert {"one0#0", "one1#0", "two0#0"} <= {key for key, found in after.items() if found}
    assert encoded(counted) == []
    assert latentcache.open_cache(str(tmp_path / "all")).field("many").field.choices == 3
    assert verify(Storage(str(tmp_path / "all"))).problems == []


def grow_named(planned: PlannedCache, name: str, texts: Any) -> PlannedCache:
    """Take in clips named after a cache, with several texts each."""
    step = Step(kind="grow")
    _add(step, planned, sources_of(["x"] * len(texts), texts, name=name), planned.config)
    taken = take_step(planned, step)
    assert taken is not None
    fill_cache(taken, seed=len(name))
    return taken


def choices_of(path: Path) -> Any:
    """The states of each of a clip's texts, by key."""
    cache = latentcache.open_cache(str(path))
    field, found = cache.field("many"), {}
    for place, table in cache.scan(["key", "row", "status"]):
        for key, row, status in zip(
            *(table[c].to_pylist() for c in ("key", "row", "status")), strict=True
        ):
            stored = field.rows(*place).get(row)
            if status == "ok":
                found[key] = [
                    field.sample(*place, row, entry.choice)["many"].float().numpy().tobytes()
                    for entry in (stored.entries if stored else ())
                ]
    return found


def test_a_clip_whose_second_file_is_another_now_is_not_current(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, ["a.mp4", "b.mp4"], texts=[["m.png"], ["m.png"]])
    settings = {"kind": "visual", "of": "vace", "masks": "texts", "column": "caption"}
    field = create_field(plan_field(cache, "vace", parse_field("vace", settings))).field
    source = FieldSource(relabel(cache, {"v1#0": "c.mp4"}), field)
    (shard,) = source.cache.planned_shards()
    now = source.texts(shard, len(source.cache.manifest.generations))
    assert now is not None
    version = field.all_versions[0].number
    assert [source.is_current(shard, n, version, now[n]) for n in (0, 1)] == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["truncated", "flipped"])
def test_a_connection_that_was_cut_loses_no_field_and_no_value(tmp_path: Path, kind: str) -> None:
    """What fails its CRC32C is read once more before anything is taken for damaged."""
    with no_waiting():
        lab = lab_of("merge", tmp_path)
        assert all(lab.run(kind, at) for at in range(41, lab.count()[kind], 14))
