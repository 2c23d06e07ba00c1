"""Planning works on pieces of tables, in memory or mapped: how large they are is no matter."""

from __future__ import annotations

import hashlib
import os
import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentcache.config.files import load_config
from latentcache.core import names
from latentcache.corpus import probe, saved_probes, source_table
from latentcache.errors import ClipError
from latentcache.format import tables
from latentcache.planning import grow, known, masks, moves, notes, plan, planned, planner
from latentcache.storage import spill
from tests.tools.caches import make_config, read_files

#: Where rows are cut into pieces.
CHUNKED = (names, probe, saved_probes, source_table, grow, masks, moves, notes, plan)
ROLES = ("video", "key", "frames", "fps", "height", "width", "caption")

#: Of each step the sources that are probed, new, changed, moved and gone.
FOUND = [
    (300, 216, 0, 0, 0),
    (104, 13, 0, 0, 0),
    (91, 0, 0, 160, 0),
    (320, 0, 0, 0, 0),
    (320, 0, 229, 0, 0),
    (87, 0, 0, 152, 14),
]


class Prober:
    """Finds in each file what its name and a salt say, and nothing in those that are broken."""

    window = 3

    def __init__(self, salt: str) -> None:
        self._salt = salt

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def probe(self, url: str, kind: str, **_: bool) -> Future[dict[str, Any]]:
        found: Future[dict[str, Any]] = Future()
        if "broken" in url:
            found.set_exception(ClipError("unreadable", f"{kind}: it is none"))
        else:
            text = Path(url).name.replace(" copy", "") + self._salt
            identity = hashlib.sha256(text.encode()).hexdigest()[:16]
            facts = {"frames": 40, "fps": 24.0, "height": 64, "width": 96, "duration_s": 40 / 24}
            found.set_result({**facts, "identity": identity})
        return found


def write_corpus(folder: Path, num: int, caption: str, videos: list[str], left_out: int) -> None:
    rows = [
        {
            "video": videos[of % len(videos)],
            "key": f"clip {of}",
            "frames": None if number % 7 == 0 else 4 if number % 19 == 0 else 30 + number % 30,
            "fps": 24.0,
            "height": 64 if number % 3 else 96,
            "width": 96 if number % 3 else 64,
            "caption": None if number % 13 == 0 else f"{caption if number < 50 else 'é'} {number}",
            "tags": None if number % 5 == 0 else [str(number)] * (number % 3),
        }
        for number in range(num)
        for of in [number // 2 if number % 31 == 0 else number]
        if number % 23 != left_out
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "corpus.parquet", row_group_size=70)


def grown(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, bytes], list[tuple[int, ...]]]:
    """Return the objects of a cache, by path, after several steps, and what each step has found."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    names = ("a.mp4", "b.mp4", "c.mp4", "broken.mp4", "a copy.mp4", "b copy.mp4")
    videos = [str(folder / name) for name in names]
    for path in videos:
        Path(path).write_bytes(b"0" * (1000 + ord(Path(path).name[0])))
        os.utime(path, (1e9, 1e9))
    config = make_config(
        folder,
        folder / "corpus.parquet",
        str(folder / "cache"),
        corpus={"columns": {role: role for role in ROLES}, "keep": ["tags"]},
        clips={"frames": [5, 17], "lengths": "each", "select": "uniform:2", "size": [64, 96]},
        cache={"url": str(folder / "cache"), "shard_clips": 8},
    )

    found = list[grow.Difference]()

    def step(salt: str = "", **options: Any) -> None:
        monkeypatch.setattr(planner, "probing_pool", lambda _: Prober(salt))
        hooks = planner.Hooks(on_step=lambda _planned, _step, difference: found.append(difference))
        planner.grow_cache(load_config(str(config)), hooks=hooks, **options)

    write_corpus(folder, 300, "a", videos[:4], -1)
    step()
    write_corpus(folder, 320, "another", videos[:4], -1)
    step()
    write_corpus(folder, 320, "another", [*videos[4:], *videos[2:4]], -1)
    step()
    step(check_content=True)
    step("changed", check_content=True)
    write_corpus(folder, 320, "a", videos[:4], 5)
    step(prune=True)
    files = read_files(folder / "cache")
    objects = {path: data for path, data in files.items() if not path.startswith("generations/")}
    return objects, [
        (each.num_probed, *map(len, (each.new, each.changed, each.moved, each.gone)))
        for each in found
    ]


@pytest.mark.slow
def test_pieces_of_any_size_give_the_same_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, found = grown(tmp_path / "corpus", monkeypatch)
    for module in CHUNKED:
        monkeypatch.setattr(module, "CHUNK_ROWS", 17)
    monkeypatch.setattr(known, "GROUP_ROWS", 20)
    monkeypatch.setattr(planned, "WINDOW_ROWS", 29)
    monkeypatch.setattr(tables, "PIECE_ROWS", 1024)
    monkeypatch.setattr(tables, "PART_BYTES", 500)
    monkeypatch.setattr(tables, "KEPT_BYTES", 0)
    monkeypatch.setattr(spill.Spill.__init__, "__defaults__", (0,))
    monkeypatch.setattr(spill, "BATCH_ROWS", 11)
    pieces, again = grown(tmp_path / "corpus", monkeypatch)
    assert again == found == FOUND
    assert {path.split("/")[0] for path in whole} >= {"plan", "retired", "columns"}
    assert sorted(pieces) == sorted(whole)
    assert [path for path in whole if pieces[path] != whole[path]] == []
