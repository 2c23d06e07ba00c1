"""Wrong configurations, corpora, places and command lines: one message that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.caches import (
    make_config,
    printed_by,
    run_job,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_pools")]


def wrong(tmp_path: Path, source: Path, /, **sections: object) -> str:
    config = make_config(tmp_path, source, str(tmp_path / "cache"), **sections)  # type: ignore[arg-type]
    return printed_by("precompute", config, status=2)


def test_wrong_configurations_say_what_to_do(corpus: Path, tmp_path: Path) -> None:
    err = wrong(tmp_path, corpus, clips={"frame": 5})
    assert "clips.frame: unknown key. Did you mean 'frames'?" in err
    err = wrong(tmp_path, corpus, clips={"frames": 6})
    assert "4k+1" in err
    assert "5 or 9" in err
    err = wrong(tmp_path, corpus, clips={"size": [60, 96]})
    assert "Use 64x96" in err
    err = wrong(tmp_path, corpus, encoder={"kind": "diffuser_video"})
    assert "Did you mean 'diffusers_video'?" in err
    err = wrong(tmp_path, corpus, cache={"url": "s4://bucket/x"})
    assert "unknown scheme 's4'." in err
    assert not (tmp_path / "cache").exists()


def test_wrong_corpora_say_what_to_do(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty" in wrong(tmp_path, tmp_path / "empty")
    assert "is not there" in wrong(tmp_path, tmp_path / "gone")
    table = tmp_path / "table.csv"
    table.write_text("file,text\nv0.mp4,hello\n")
    err = wrong(tmp_path, table, corpus={"source": str(table), "columns": {"video": "path"}})
    assert "has no column 'path'. It has: 'file', 'text'." in err
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "page.mp4").write_text("<html>")
    err = wrong(tmp_path, tmp_path / "bad")
    assert "no source gives a clip" in err
    assert "1 x unreadable" in err


def test_an_unwritable_cache_is_one_message(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    config = make_config(tmp_path, corpus, str(tmp_path / "file" / "cache"))
    _, err = run_job("precompute", config, status=1)
    assert "cannot write" in err or "Not a directory" in err
    assert len(err.strip().splitlines()) == 1


def test_a_folder_with_other_files_is_no_place_for_a_cache(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("precious")
    err = wrong(tmp_path, corpus, cache={"url": str(tmp_path / "home")})
    assert "it holds thesis.tex" in err
    assert "Nothing was written" in err
    assert [p.name for p in (tmp_path / "home").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("place", ["made", "file://made", "local://made"])
def test_no_job_makes_a_cache_or_an_export_in_the_folder_of_a_ray_job(
    place: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "working_dir_files/_ray_pkg_1"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    config = make_config(tmp_path, corpus, place)
    for command in (
        ("precompute", config),
        ("copy", tmp_path / "one", place),
        ("merge", tmp_path / "one", tmp_path / "other", "-o", place),
        ("import", "hf", tmp_path / "layout", place, "--like", tmp_path / "one"),
        ("export", tmp_path / "one", place, "--to", "hf"),
    ):
        _, err = run_job(*command, status=2)
        assert f"{place!r} is in the folder of this Ray job ({folder})" in err, command
    assert list(folder.iterdir()) == []


def test_wrong_command_lines_exit_with_2(tmp_path: Path) -> None:
    for job, *arguments in (
        ("precompute",),
        ("precompute", tmp_path / "none.yaml"),
        ("stream", "--epochs", "0", tmp_path),
    ):
        _, err = run_job(job, *arguments, status=2)
        assert err
