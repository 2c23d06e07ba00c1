"""Random histories of videos and their values per frame: a clip has the values of its own video."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from latentcache.format.schemas import RETIRED_SCHEMA
from latentcache.planning.create import take_step
from latentcache.planning.known import KnownCache
from latentcache.planning.planned import PlannedCache
from latentcache.planning.retry import plan_retry
from tests.planning.test_relabel import Corpus, Videos, clips_of, cut

NAMES = ("a", "b", "c")
#: Frames that a file has; 0: it is no video.
FRAMES = (0, 5, 10, 12)
WIDTH = 2
#: A caption, and values per frame.
Labels = tuple[str, Any]


@st.composite
def values(draw: st.DrawFn) -> Any:
    """Values of so many frames, most of them sound."""
    length, seed = draw(st.sampled_from((4, 5, 10, 11, 12))), draw(st.integers(0, 99))
    width = draw(st.sampled_from((WIDTH, WIDTH, WIDTH, 3)))
    found: list[Any] = [[seed + n / 100] * width for n in range(length)]
    flaw = draw(st.sampled_from((None, None, None, "frame", "number", "all")))
    if flaw == "frame":
        found[2] = None
    elif flaw == "number":
        found[2] = [1.0, None]
    return None if flaw == "all" else found


def fits(frames: int, found: Any) -> bool:
    """Tell whether values are those of a video, as the documents say."""
    vectors = [vector for vector in found or [] if vector and None not in vector]
    return (
        frames > 0 and [len(vector) for vector in vectors] == [WIDTH] * frames and found == vectors
    )


class History(RuleBasedStateMachine):
    """files: frames of each; table: what the corpus says. planned, rejected: what the cache is to know."""

    cache: PlannedCache

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.corpus = Corpus(self.folder)
        self.files: dict[str, int] = {}
        self.table: dict[str, Labels] = {}
        self.planned: dict[str, Labels] = {}
        self.rejected: dict[str, Labels] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize()
    def begin(self) -> None:
        self.put("a", 10)
        self.write("a", "first", [[0.0] * WIDTH] * 10)
        self.grow()

    @rule(name=st.sampled_from(NAMES), frames=st.sampled_from(FRAMES))
    def put(self, name: str, frames: int) -> None:
        self.files[name] = frames
        self.corpus.put(**{name: frames})

    @rule(name=st.sampled_from(NAMES), text=st.sampled_from(["one", "two"]), found=values())
    def write(self, name: str, text: str, found: Any) -> None:
        if name in self.files:
            self.table[name] = text, found

    @rule(name=st.sampled_from(NAMES), seed=st.integers(0, 9))
    def write_what_fits(self, name: str, seed: int) -> None:
        if frames := self.files.get(name):
            self.table[name] = f"caption {seed}", [[seed + 0.5, n] for n in range(frames)]

    @rule()
    def grow(self) -> None:
        self.cache = self.corpus.grow(*((name, *labels) for name, labels in self.table.items()))
        for name, labels in self.table.items():
            self._take(name, labels)

    @rule()
    def retry(self) -> None:
        """Rejected sources that can be used now are taken in with what was said of them last."""
        empty = RETIRED_SCHEMA.empty_table()
        step, _ = plan_retry(self.cache, empty, lambda: Videos(**self.files))
        self.cache = take_step(self.cache, step) or self.cache
        for name, labels in [*self.rejected.items()]:
            self._take(name, labels)

    def _take(self, name: str, labels: Labels) -> None:
        if fits(self.files[name], labels[1]):
            self.planned[name] = labels
            self.rejected.pop(name, None)
        elif name not in self.planned:
            self.rejected[name] = labels

    @invariant()
    def clips_have_the_values_of_their_own_videos(self) -> None:
        if self.planned:
            expected = {name: cut(*labels) for name, labels in self.planned.items()}
            assert clips_of(self.cache) == expected

    @invariant()
    def rejected_sources_have_what_was_said_last(self) -> None:
        if self.planned:
            known = KnownCache(self.cache.storage, self.cache.manifest, self.cache.plan)
            found = {r["source"][:1]: r["caption"] for r in known.rejected_rows().to_pylist()}
            assert found == {name: text for name, (text, _) in self.rejected.items()}


STEPS = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


def test_a_few_histories() -> None:
    few = settings(max_examples=15, stateful_step_count=12, derandomize=True, **STEPS)
    run_state_machine_as_test(History, settings=few)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_many_histories() -> None:
    many = settings(max_examples=300, stateful_step_count=25, **STEPS)
    run_state_machine_as_test(History, settings=many)
