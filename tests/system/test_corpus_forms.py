"""Whole runs on corpora in tar files: the latents of the same files in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.caches import make_config, run_inline, samples_of
from tests.tools.tars import pack
from tests.tools.videos import moving_pattern, write_video

pytestmark = pytest.mark.long
CLIPS = {"frames": 5, "select": "first", "size": [64, 96]}


def make_videos(folder: Path, number: int, first_seed: int = 0) -> list[str]:
    folder.mkdir(exist_ok=True)
    for n in range(number):
        write_video(folder / f"v{n}.mp4", moving_pattern(6, 64, 96, seed=first_seed + n))
        (folder / f"v{n}.txt").write_text(f"caption {n}")
    return [f"v{n}.{suffix}" for n in range(number) for suffix in ("mp4", "txt")]


def latents_of(folder: Path, corpus: object, name: str) -> dict[str, bytes]:
    """Run precompute, on a new cache or an old one; return its latents by key."""
    (folder / name).mkdir(exist_ok=True)
    cache = folder / name / "cache"
    config = make_config(folder / name, Path(str(corpus)), str(cache), clips=CLIPS)
    status, printed = run_inline("precompute", config)
    assert status == 0, printed
    return samples_of(cache)


def test_a_tar_gives_the_latents_of_its_files_and_a_changed_member_is_encoded_again(
    tmp_path: Path,
) -> None:
    files, shards = tmp_path / "files", tmp_path / "shards"
    names = make_videos(files, 3)
    pack(files, [(shards / "0.tar", names[:4]), (shards / "1.tar", names[4:])])
    expected = sorted(latents_of(tmp_path, files, "folder").values())
    got = latents_of(tmp_path, f"{shards}/*.tar", "tars")
    assert sorted(got.values()) == expected
    write_video(files / "v0.mp4", moving_pattern(6, 64, 96, seed=50))
    pack(files, [(shards / "0.tar", names[:4])])
    grown = latents_of(tmp_path, f"{shards}/*.tar", "tars")
    assert len(set(grown.values()) & set(got.values())) == 2
    assert len(grown) == 3
