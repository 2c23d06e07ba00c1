"""Tables of images with files beside them, which move from one folder to another, and a cache of them."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from PIL import Image

import latentcache
from latentcache.core.dtypes import as_numpy
from tests.tools.caches import run_inline
from tests.tools.videos import moving_pattern

ARRAY = {"kind": "array", "column": "file", "shape": [3], "dtype": "float32"}
PIXELS = {"kind": "raw", "of": "first", "column": "file"}
#: How a table names its sources: by their relative paths, by keys, or by keys beside absolute paths.
Given = Literal["names", "keys", "urls"]


class Moving:
    """A cache of a table of images, each with a file of one number; the table may be in several folders."""

    def __init__(self, folder: Path, field: dict[str, Any], suffix: str) -> None:
        self.folder, self.field, self.suffix = folder, field, suffix
        self.cache, self.columns = folder / "cache", {"image": "path"}

    def write(self, place: str, **files: tuple[str, int]) -> Path:
        """Write a table of images by name, each with its file's name and number; returns its folder."""
        folder = self.folder / place
        folder.mkdir(exist_ok=True)
        with (folder / "t.csv").open("w", newline="") as text:
            table = csv.writer(text)
            table.writerow(["path", "file"])
            for name, (file, number) in files.items():
                image = folder / f"{name}.png"
                if not image.exists():
                    Image.fromarray(moving_pattern(1, 32, 32, seed=ord(name))[0]).save(image)
                self._save(folder / f"{file}.{self.suffix}", number)
                table.writerow([f"{name}.png", f"{file}.{self.suffix}"])
        return folder

    def _save(self, path: Path, number: int) -> None:
        if self.suffix == "npy":
            np.save(path, np.full(3, number, np.float32))
        else:
            Image.fromarray(np.full((32, 32, 3), number, np.uint8)).save(path)

    def name_sources(self, place: str, given: Given, of: Mapping[str, str] | None = None) -> None:
        """Give the sources of a table keys, or absolute URLs. of: the folder that each is in."""
        path = self.folder / place / "t.csv"
        if given == "names":
            return
        with path.open(newline="") as text:
            rows = list(csv.DictReader(text))
        for row in rows:
            name = row["path"].partition(".")[0]
            row["key"] = name
            if given == "urls":
                row["path"] = str(self.folder / (of or {}).get(name, place) / row["path"])
        with path.open("w", newline="") as text:
            table = csv.DictWriter(text, ["path", "file", "key"])
            table.writeheader()
            table.writerows(rows)
        self.columns = {"image": "path", "key": "key"}

    def forget_values(self) -> None:
        """Leave the field as a run does that is killed before it has stored a shard."""
        for name in ("samples", "000001"):
            shutil.rmtree(self.cache / "fields/f" / name)
        (self.cache / "fields/f/index.parquet").unlink()

    def copy(self) -> None:
        """Copy the cache, and go on with the copy."""
        status, printed = run_inline("copy", self.cache, self.folder / "copy")
        assert status == 0, printed
        self.cache = self.folder / "copy"

    def precompute(self, place: str, *options: str, field: bool = True, status: int = 0) -> str:
        config = {
            "corpus": {
                "source": str(self.folder / place / "t.csv"),
                "columns": self.columns,
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
        found, printed = run_inline("precompute", path, *options)
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
                found[re.split(r"[.#]", key)[0]] = int(as_numpy(sample[name]).flat[0])
        return found
