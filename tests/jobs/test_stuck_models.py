"""A model that hangs while it is loaded ends each job that loads one, with a message."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentcache.config.sections import RunConfig
from latentcache.errors import EncoderError, RecipeMismatchError
from latentcache.running.start import loaded
from tests.tools.caches import make_config, make_corpus, run_inline

STUCK = "encoder.kind=tests.tools.encoders.stuck"
LIMIT = "run.stall_s=1"
JOBS = {
    "estimate": ["--clips", "1"],
    "verify": ["--sample", "1"],
    "preview": ["--sample", "1"],
    "report": ["--clips", "1"],
}


@pytest.fixture(name="made")
def made_fixture(tmp_path: Path) -> tuple[Path, Path]:
    """A configuration, and where its cache will be."""
    cache = tmp_path / "cache"
    encoder = {"kind": "tests.tools.encoders.deadly"}
    return make_config(
        tmp_path, make_corpus(tmp_path / "corpus", 1), str(cache), encoder=encoder
    ), cache


@pytest.mark.slow
@pytest.mark.parametrize(
    "job", [job if job == "estimate" else pytest.param(job, marks=pytest.mark.long) for job in JOBS]
)
def test_a_model_that_never_comes_ends_a_job_with_a_message(
    made: tuple[Path, Path], tmp_path: Path, job: str
) -> None:
    config, cache = made
    words = [*JOBS[job], *(["-o", str(tmp_path / "out")] if job in ("preview", "report") else [])]
    if job != "estimate":
        assert run_inline("precompute", config)[0] == 3
    status, printed = run_inline(job, config if job == "estimate" else cache, *words, STUCK, LIMIT)
    # A report has more to say than what clips decode to.
    assert status == (0 if job == "report" else EncoderError("").exit_status), printed
    assert "loading the model made no progress for 1 s (run.stall_s)" in printed


def test_what_loading_raises_is_raised_as_it_is() -> None:
    def fail() -> None:
        raise RecipeMismatchError("another model\n  scale: 1 in the cache, 2 now")

    with pytest.raises(RecipeMismatchError, match="another model\n  scale"):
        loaded(fail, RunConfig())
    assert loaded(lambda: "up", RunConfig()) == "up"
