"""Fields of columns that a corpus keeps, loses and gains while its cache grows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import latentcache
from latentcache.core.dtypes import as_numpy
from tests.tools.caches import make_config, read_files, run_inline
from tests.tools.fields import padded, text_field
from tests.tools.videos import moving_pattern

pytestmark = pytest.mark.usefixtures("kept_pools")


class Corpus:
    """A table of three images at most, whose rows a test writes, and the cache of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder, folder / "cache"
        for name in "abc":
            pixels_HWC = moving_pattern(1, 32, 32, seed=ord(name))[0]
            Image.fromarray(pixels_HWC).save(folder / f"{name}.png")

    def write(self, **rows: dict[str, Any]) -> None:
        lines = [{"key": name, "path": f"{name}.png", **row} for name, row in rows.items()]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (self.folder / "t.jsonl").write_text(text)

    def precompute(self, *keep: str, status: int = 0, **fields: Any) -> str:
        columns = {"image": "path", "caption": "caption", "key": "key"}
        path = make_config(
            self.folder,
            self.folder / "t.jsonl",
            str(self.cache),
            corpus={"columns": columns, "keep": [*keep]},
            clips={"frames": 1, "size": [32, 32]},
            cache={"shard_clips": 2},
            fields=fields,
        )
        found, printed = run_inline("precompute", path)
        assert found == status, printed
        return printed

    def check(self, field: str, **texts: str | None) -> None:
        """Check that a field has the states of each image's text; of None that it lacks the image."""
        cache = latentcache.open_cache(str(self.cache))
        for name, text in texts.items():
            sample = cache.sample(f"{name}#0")
            if text is None:
                with pytest.raises(KeyError):
                    sample[field]
            else:
                np.testing.assert_array_equal(as_numpy(sample[field]), padded(text))


@pytest.fixture(name="corpus")
def corpus_fixture(tmp_path: Path) -> Corpus:
    return Corpus(tmp_path)


@pytest.mark.slow
def test_a_field_gets_the_texts_of_a_column_that_a_step_lacked(corpus: Corpus) -> None:
    field = {"x": text_field(column="y")}
    corpus.write(a={"caption": "A", "y": "one"}, b={"caption": "B", "y": "two"})
    corpus.precompute("y", **field)
    corpus.write(**{name: {"caption": name} for name in "abc"})
    corpus.precompute()
    found, printed = run_inline("resume", corpus.cache)
    assert found == 3
    assert "there is no text in y" in printed
    corpus.check("x", a="one", b="two", c=None)
    corpus.write(**{name: {"caption": "A", "y": f"new {name}"} for name in "abc"})
    assert "3 clips have other texts" in corpus.precompute("y", **field)
    corpus.check("x", a="new a", b="new b", c="new c")


@pytest.mark.slow
def test_a_field_of_a_column_that_no_step_has_kept_is_refused(corpus: Corpus) -> None:
    corpus.write(a={"caption": "A", "y": "one"})
    corpus.precompute("y")
    corpus.write(a={"caption": "A"}, c={"caption": "C"})
    printed = corpus.precompute(status=2, x=text_field(column="yy"))
    assert "no such column. Did you mean 'y'? They have: caption, y." in printed


@pytest.mark.slow
def test_a_field_of_captions_follows_lists_that_become_single_texts(corpus: Corpus) -> None:
    field = {"x": text_field(column="captions", max_choices=2)}
    corpus.write(a={"caption": ["one", "uno"]}, b={"caption": ["two"]})
    corpus.precompute(**field)
    corpus.write(a={"caption": "eins"}, b={"caption": None}, c={"caption": "drei"})
    assert "2 clips have other texts" in corpus.precompute(status=3, **field)
    corpus.check("x", a="eins", b=None, c="drei")
    corpus.write(**{name: {"caption": [f"new {name}", "other"]} for name in "abc"})
    corpus.precompute(**field)
    corpus.check("x", a="new a", b="new b", c="new c")


@pytest.mark.slow
def test_a_column_with_the_name_of_a_field_is_refused_before_anything_is_written(
    corpus: Corpus,
) -> None:
    field = {"x": text_field()}
    corpus.write(a={"caption": "A"}, b={"caption": "B"})
    corpus.precompute(**field)
    before = read_files(corpus.cache)
    for names in ("ab", "abc"):
        corpus.write(**{name: {"caption": name.upper(), "x": 1.5} for name in names})
        printed = corpus.precompute("x", status=2, **field)
        assert "corpus.keep: the cache has a field 'x'" in printed
        assert read_files(corpus.cache) == before


@pytest.mark.slow
def test_a_field_is_not_named_as_a_column_that_only_a_later_step_has_kept(corpus: Corpus) -> None:
    corpus.write(a={"caption": "A"}, b={"caption": "B"})
    corpus.precompute()
    corpus.write(a={"caption": "A"}, b={"caption": "B"}, c={"caption": "C", "x": 1.5})
    corpus.precompute("x")
    printed = corpus.precompute("x", status=2, x=text_field())
    assert "a field cannot be named 'x'" in printed
