"""Splits of a data set that are taken together: said, with what takes one of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentcache.corpus.splits import note_of_splits
from tests.tools.caches import make_config, run_inline
from tests.tools.corpora import column, make, read, write_parquet

SHARD = "00000-of-00001.parquet"


@pytest.mark.parametrize(
    ("names", "splits", "source"),
    [
        ([f"data/train-{SHARD}", f"data/test-{SHARD}"], "test, train", "data/train-*.parquet"),
        (
            ["train-00000-of-00001-0123abcd.parquet", f"extra-{SHARD}"],
            "extra, train",
            "train-*.parquet",
        ),
        (["train.parquet", "validation.parquet"], "train, validation", "train.parquet"),
        (["test/a.parquet", "train/a/b.parquet"], "test, train", "test"),
        (["x/val/a.tar", "x/train/a.tar", "x/train/b.tar"], "train, val", "x/val"),
    ],
)
def test_files_of_several_splits_are_told_apart_by_their_names(
    names: list[str], splits: str, source: str
) -> None:
    (note,) = note_of_splits("/d/", names, names)
    assert note.startswith(f"2 splits taken together as one corpus: {splits}. To take one")
    assert note.endswith(f"set corpus.source: /d/{source}")


@pytest.mark.parametrize(
    "names",
    [
        ["a.parquet", "b.parquet"],
        [f"train-{SHARD}", "b.parquet"],
        [f"a/train-{SHARD}", f"b/train-{SHARD}"],
        ["train/data-00000-of-00001.arrow", "train/cache-x.arrow"],
        ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"],
        ["trained/a.tar", "tested/a.tar"],
    ],
)
def test_one_split_or_none_is_not_worth_a_word(names: list[str]) -> None:
    assert note_of_splits("/d", names, names) == ()


def test_a_dict_of_data_sets_has_a_folder_per_split() -> None:
    arrow = [f"saved/{split}/data-00000-of-00001.arrow" for split in ("mine", "yours")]
    (note,) = note_of_splits("/d", [*arrow, "saved/dataset_dict.json"], arrow)
    assert "mine, yours" in note
    assert note.endswith("set corpus.source: /d/saved/mine")


@pytest.mark.slow
def test_a_plan_says_that_it_takes_all_splits_and_what_it_says_takes_one(tmp_path: Path) -> None:
    make(tmp_path, "train.mp4", "test.mp4")
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        row = {"video": f"{tmp_path}/{split}.mp4"}
        write_parquet(tmp_path / "data" / f"{split}-{SHARD}", [row])
    (note,) = read(tmp_path / "data").notes
    source = note.split("corpus.source: ")[1]
    one = read(source)
    assert column(one, "name") == [f"{tmp_path}/test.mp4"]
    assert not one.notes
    config = make_config(tmp_path, tmp_path / "data", str(tmp_path / "cache"))
    _, printed = run_inline("precompute", config, "--dry-run")
    assert f"note     {note}" in printed
