"""What an export says of clips without states: whether they wait, failed or have no text; what to run."""

from __future__ import annotations

from pathlib import Path

import pytest

import latentcache
from tests.tools.exchange import export, run
from tests.tools.fields import add, cache_of, grow, relabel, text_field

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fastvideo_takes_dct")]


def exported(planned_url: str, out: Path, status: int = 2) -> str:
    cache = latentcache.open_cache(planned_url)
    return export(cache, out, "fastvideo", "--text", "umt5", status=status)


def test_a_clip_that_came_since_is_not_encoded_yet(tmp_path: Path) -> None:
    planned = cache_of(tmp_path, ["a cat"])
    add(planned, umt5=text_field(length=24))
    url = grow(planned, ["a dog"]).storage.url
    printed = exported(url, tmp_path / "out")
    resume = f"latentcache resume {url} --field umt5"
    assert f"not encoded yet: 1 clip ('g1_0#0'). Run: {resume}\n" in printed
    assert "captions" not in printed
    run("resume", url, "--field", "umt5", "run.runner=local")
    exported(url, tmp_path / "out", status=0)


def test_failed_clips_and_those_without_a_text_are_told_apart(tmp_path: Path) -> None:
    planned = cache_of(tmp_path, ["a cat", "NAN", "its latents failed", None, "NAN too", None])
    add(planned, umt5=text_field(length=24), status=3)
    url = relabel(planned, {"v3#0": "a hen"}).storage.url
    printed = exported(url, tmp_path / "out")
    resume = f"latentcache resume {url} --field umt5"
    assert (
        "\n".join(
            [
                f"  not encoded yet: 1 clip ('v3#0'). Run: {resume}",
                "  failed (non_finite 2): 2 clips ('v1#0', 'v4#0'). To try again, run: "
                f"{resume} --retry-failed",
                "  without a text: 1 clip ('v5#0'). Add captions to the corpus, run precompute, then: "
                f"{resume}",
            ]
        )
        in printed
    )
    assert not (tmp_path / "out").exists()
