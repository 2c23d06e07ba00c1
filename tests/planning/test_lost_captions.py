"""A corpus that has lost its captions, or some of them: what clips keep, and what is said."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from latentcache.config.files import load_config
from latentcache.format.columns import CAPTION
from latentcache.planning.planner import grow_cache
from tests.planning.test_pieces import Prober
from tests.tools.caches import make_config, run_inline

ROWS = {name: {"caption": f"of {name}", "n": n} for n, name in enumerate("abc")}


class Corpus:
    """Videos and their cache, of which nothing is encoded."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.table = folder / "videos", folder / "videos" / "corpus.jsonl"
        self.folder.mkdir()
        for name in ROWS:
            (self.folder / f"{name}.mp4").write_bytes(b"0" * 1000)

    def of_table(self, rows: Mapping[str, Mapping[str, Any]], **corpus: Any) -> None:
        """Take the rows of a table as the corpus."""
        lines = [json.dumps({"video": f"{name}.mp4", **row}) + "\n" for name, row in rows.items()]
        self.table.write_text("".join(lines))
        self.config = self._config(self.table, **{"keep": ["n"], **corpus})

    def of_files(self, **captions: str) -> None:
        """Take the folder as the corpus, with text files for some videos."""
        for name in ROWS:
            (self.folder / f"{name}.txt").unlink(missing_ok=True)
        for name, text in captions.items():
            (self.folder / f"{name}.txt").write_text(text)
        self.config = self._config(self.folder)

    def _config(self, source: Path, **corpus: Any) -> Path:
        place = self.folder.parent
        clips = {"frames": 5, "size": [64, 96], "select": "first"}
        return make_config(place, source, f"{place}/cache", corpus=corpus, clips=clips)

    def plan(self) -> str:
        """Say what a dry run says of captions, and take it in."""
        status, printed = run_inline("precompute", self.config, "--dry-run")
        assert status == 0, printed
        config = load_config(str(self.config))
        self.planned = grow_cache(config, prober=lambda _: Prober(""))
        return "\n".join(line for line in printed.splitlines() if line.startswith("captions"))

    def values(self, name: str = CAPTION) -> list[Any]:
        """The values of a column, by source."""
        shards = self.planned.planned_shards()
        rows = pa.concat_tables([self.planned.plan.rows(shard) for shard in shards])
        return rows.sort_by("source")[name].to_pylist()  # type: ignore[no-any-return]


@pytest.fixture(name="corpus")
def corpus_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    monkeypatch.setattr("jobs.precompute.prober_of", lambda _: Prober(""))
    return Corpus(tmp_path)


CAPTIONS = ["of a", "of b", "of c"]
KEEP = "captions 3 clips keep theirs, for the corpus has no captions any more"


def test_captions_stay_where_a_table_has_none_any_more(corpus: Corpus) -> None:
    corpus.of_table(ROWS)
    assert corpus.plan() == "captions 3 found, 0 missing"
    renamed = {name: {"text": row["caption"], "n": 9} for name, row in ROWS.items()}
    corpus.of_table(renamed)
    assert corpus.plan().split("\n") == [
        "captions 3 clips with other captions or kept columns",
        KEEP,
    ]
    assert corpus.values() == CAPTIONS
    assert corpus.values("n") == [9, 9, 9]
    corpus.of_table(renamed, columns={"video": "video", "caption": "text"})
    assert corpus.plan() == ""
    assert corpus.values() == CAPTIONS


def test_captions_stay_where_no_text_file_is_there_any_more(corpus: Corpus) -> None:
    corpus.of_files(a="of a", b="of b", c="of c")
    corpus.plan()
    corpus.of_files()
    assert corpus.plan() == KEEP
    assert corpus.values() == CAPTIONS
    corpus.of_files(a="of a")
    assert corpus.plan() == (
        "captions 2 clips with other captions or kept columns\n"
        "captions 2 of them have lost their caption: the corpus has none for them any more"
    )
    assert corpus.values() == ["of a", None, None]


def test_several_captions_stay_with_the_first(corpus: Corpus) -> None:
    lists = {name: {"caption": [f"of {name}", "more"], "n": 1} for name in ROWS}
    corpus.of_table(lists)
    corpus.plan()
    for row in ({"n": 1}, {"n": 1, "caption": []}):
        corpus.of_table(dict.fromkeys(ROWS, row))
        assert corpus.plan() == KEEP
        assert corpus.values() == CAPTIONS
        assert corpus.values("captions") == [[text, "more"] for text in CAPTIONS]


def test_a_rejected_source_is_not_noted_again_for_a_caption_that_is_lost(corpus: Corpus) -> None:
    (corpus.folder / "broken.mp4").write_bytes(b"0")
    rows = {**ROWS, "broken": {"caption": "of it", "n": 1}}
    corpus.of_table(rows)
    corpus.plan()
    before = corpus.planned.manifest.generations
    corpus.of_table({name: {"n": row["n"]} for name, row in rows.items()})
    assert corpus.plan() == KEEP
    assert corpus.planned.manifest.generations == before


def test_a_kept_column_called_captions_is_one_like_all_others(corpus: Corpus) -> None:
    """It is no caption: that the corpus has none says nothing of it."""
    for word in ("one", "two"):
        rows = {name: {"captions": [f"{word} {name}", "b"], "n": 1} for name in ROWS}
        corpus.of_table(rows, columns={"video": "video"}, keep=["captions", "n"])
        corpus.plan()
        assert corpus.values("captions") == [[f"{word} {name}", "b"] for name in ROWS]
