"""Fields of files whose paths are relative, while the corpus moves from one folder to another."""

from __future__ import annotations

import csv
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import latentcache
from latentcache.core.dtypes import as_numpy
from tests.tools.caches import run_inline
from tests.tools.fields import write_fields
from tests.tools.videos import moving_pattern

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_pools")]

ARRAY = {"kind": "array", "column": "file", "shape": [3], "dtype": "float32"}
PIXELS = {"kind": "raw", "of": "first", "column": "file"}
KINDS = [pytest.param((ARRAY, "npy"), id="array"), pytest.param((PIXELS, "png"), id="raw")]


class Moving:
    """A cache of a table of images, each with a file of one number; the table may be in several folders."""

    def __init__(self, folder: Path, field: dict[str, Any], suffix: str) -> None:
        self.folder, self.field, self.suffix = folder, field, suffix
        self.cache = folder / "cache"

    def write(self, place: str, **files: tuple[str, int]) -> Path:
        """Write a table of images by name, each with its file's name and number; returns its folder."""
        folder = self.folder / place
        folder.mkdir(exist_ok=True)
        with (folder / "t.csv").open("w", newline="") as text:
            table = csv.writer(text)
            table.writerow(["path", "file"])
            for name, (file, number) in files.items():
                pixels_HWC = moving_pattern(1, 32, 32, seed=ord(name))[0]
                Image.fromarray(pixels_HWC).save(folder / f"{name}.png")
                self._save(folder / f"{file}.{self.suffix}", number)
                table.writerow([f"{name}.png", f"{file}.{self.suffix}"])
        return folder

    def _save(self, path: Path, number: int) -> None:
        if self.suffix == "npy":
            np.save(path, np.full(3, number, np.float32))
        else:
            Image.fromarray(np.full((32, 32, 3), number, np.uint8)).save(path)

    def precompute(self, place: str, *, field: bool = True, status: int = 0) -> str:
        columns = {"image": "path"}
        config = {
            "corpus": {
                "source": str(self.folder / place / "t.csv"),
                "columns": columns,
                "keep": ["file"],
            },
            "clips": {"frames": 1, "size": [32, 32]},
            "encoder": {"kind": "dct", "store": "mean"},
            "cache": {"url": str(self.cache)},
            "run": {"runner": "local", "decode_processes": 1},
            "fields": {"f": self.field} if field else {},
        }
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        found, printed = run_inline("precompute", path)
        assert found == status, printed
        return printed

    def resume(self, *overrides: str) -> tuple[int, str]:
        return run_inline("resume", self.cache, "run.runner=local", *overrides)

    def values(self, name: str = "f") -> dict[str, int]:
        """Return the number that a field has of each image."""
        cache, found = latentcache.open_cache(str(self.cache)), {}
        for n, key in enumerate(cache.keys()):
            with suppress(KeyError):
                sample = cache.stored_samples([n])[0]
                found[key.partition(".")[0]] = int(as_numpy(sample[name]).flat[0])
        return found


@pytest.fixture(name="moving", params=KINDS)
def moving_fixture(tmp_path: Path, request: pytest.FixtureRequest) -> Moving:
    """A cache made in the folder `old`, where there are other files now of the names that come later."""
    field, suffix = request.param
    moving = Moving(tmp_path, field, suffix)
    moving.write("old", a=("a1", 1), b=("b1", 2))
    moving.precompute("old")
    moving.write("old", b=("b2", 100), c=("c1", 101))
    return moving


def test_files_are_those_beside_the_table_that_the_corpus_has_now(moving: Moving) -> None:
    place = moving.write("new", a=("a1", 1), b=("b2", 12), c=("c1", 13))
    printed = moving.precompute("new")
    assert f"relative paths of f start at {place} now" in printed
    assert moving.values() == {"a": 1, "b": 12, "c": 13}
    assert run_inline("verify", moving.cache)[0] == 0


def test_a_run_that_goes_on_reads_where_the_last_one_was_told_to(moving: Moving) -> None:
    moving.write("new", a=("a1", 1), b=("b1", 2), c=("c1", 13))
    (moving.folder / "new" / f"c1.{moving.suffix}").unlink()
    moving.precompute("new", status=3)
    moving.write("new", c=("c1", 13))
    status, printed = moving.resume("--retry-failed")
    assert status == 0, printed
    assert moving.values()["c"] == 13


def test_a_run_that_was_not_told_where_the_files_are_now_reads_none_at_the_old_place(
    moving: Moving,
) -> None:
    place = moving.write("new", a=("a1", 1), b=("b1", 2), c=("c1", 13))
    moving.precompute("new", field=False)
    status, printed = moving.resume()
    assert (status, "Say where they start now" in printed) == (2, True), printed
    assert "c" not in moving.values()
    status, printed = moving.resume(f"fields.f.folder={place}")
    assert status == 0, printed
    assert moving.values()["c"] == 13
    assert moving.resume()[0] == 0


def test_a_new_field_of_a_corpus_that_has_moved_needs_its_folder(moving: Moving) -> None:
    place = moving.write("new", a=("a1", 11), b=("b1", 12))
    moving.precompute("new", field=False)
    for folder, status in (({}, 2), ({"folder": str(place)}, 0)):
        fields = write_fields(moving.folder, g={**moving.field, **folder})
        found, printed = run_inline("add_field", moving.cache, fields, "run.runner=local")
        assert found == status, printed
    assert moving.values("g") == {"a": 11, "b": 12}


def test_a_folder_that_is_gone_is_named_with_what_helps(moving: Moving) -> None:
    moving.write("new", a=("a1", 1), b=("b1", 2), c=("c1", 13))
    moving.write("moved", c=("c1", 13))
    shutil.move(moving.folder / "old", moving.folder / "elsewhere")
    moving.field = {**moving.field, "folder": str(moving.folder / "old")}
    printed = moving.precompute("new", status=1)
    command = f"latentcache resume {moving.cache} fields.f.folder=PLACE"
    assert f"start at {moving.folder}/old. If its files are elsewhere now:  {command}" in printed
    status, printed = moving.resume(f"fields.f.folder={moving.folder}/moved")
    assert status == 0, printed
    assert moving.values() == {"a": 1, "b": 2, "c": 13}
