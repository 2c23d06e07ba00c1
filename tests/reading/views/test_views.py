"""Views: what they give equals slices of the whole, whatever ranks, workers and restarts there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import latentcache
from latentcache.errors import CacheError, ConfigError
from latentcache.reading.cache import open_cache
from latentcache.reading.loader.loader import LatentLoader
from latentcache.reading.views.protocol import Pick, Record
from latentcache.reading.views.window import Window
from tests.tools.synthetic import Synthetic, write_cache

BUCKETS = {"9x16x16": 7, "12x16x24": 6}
FAILED = [("9x16x16", 2)]


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    url = str(tmp_path_factory.mktemp("moments"))
    return write_cache(url, stored="moments", buckets=BUCKETS, failed=FAILED, by_frame=True)


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return write_cache(str(tmp_path_factory.mktemp("causal")), buckets={"45x16x16": 5})


class Ends:
    """A view of the tests' own: the first and the last latent frame, and a random number."""

    def pick(self, record: Record, draw: torch.Generator) -> Pick:
        number = int(torch.randint(1000, (), generator=draw))
        return Pick(frames=[record.num_frames - 1, 0], facts={"number": number})

    def make(self, record: Record, arrays: Any, pick: Pick) -> dict[str, Any]:
        frames = torch.tensor(pick.frames)
        number = torch.tensor(pick.facts["number"])
        return {"latents": arrays["latents"], "frame_indices": frames, "number": number}


def turned(record: Record, arrays: Any, pick: Pick) -> dict[str, Any]:
    """The whole, backwards."""
    frames = torch.arange(record.num_frames).flip(0)
    return {"latents": arrays["latents"].flip(1), "frame_indices": frames}


VIEWS: dict[str, Callable[[], Any]] = {
    "random": lambda: Window(4),
    "step": lambda: Window(3, step=2),
    "twice": lambda: Window(4, per_clip=2),
    "first": lambda: Window(frames=5, start="first"),
    "all": lambda: Window(6, start="all"),
    "object": Ends,
    "function": lambda: turned,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VIEWS)
def test_a_view_equals_slicing_the_whole(name: str, moments: Synthetic) -> None:
    cache = open_cache(moments.url)
    loader = LatentLoader(cache, batch_size=3, view=VIEWS[name]())
    seen: Counter[str] = Counter()
    for epoch in range(2):
        whole = cache.dataset()
        whole.set_epoch(epoch)
        for batch in loader:
            assert len(batch["latents"]) == len(batch["key"]) == len(batch["frame_indices"])
            assert batch["latents"].is_contiguous()
            for key, latents, frames in zip(
                batch["key"], batch["latents"], batch["frame_indices"], strict=True
            ):
                assert torch.equal(latents, whole[key]["latents"][:, frames])
                seen[key] += 1
    assert set(seen) == set(moments.arrays)
    counts = {"all": {"9x16x16": 8, "12x16x24": 14}, "twice": dict.fromkeys(BUCKETS, 4)}
    for key, num in seen.items():
        assert num == counts.get(name, {}).get(key[:-5], 2)


@pytest.mark.slow
def test_all_windows_come_once_each(moments: Synthetic) -> None:
    batches = list(LatentLoader(moments.url, batch_size=4, view=Window(6, start="all")))
    found = [
        (key, tuple(frames))
        for batch in batches
        for key, frames in zip(batch["key"], batch["frame_indices"].tolist(), strict=True)
    ]
    expected = [
        (key, tuple(range(start, start + 6)))
        for key, array in moments.arrays.items()
        for start in range(array.shape[1] - 5)
    ]
    assert sorted(found) == sorted(expected)


@pytest.mark.slow
def test_starts_differ_between_epochs_clips_and_windows_of_a_clip(moments: Synthetic) -> None:
    loader = LatentLoader(moments.url, batch_size=12, view=Window(2, per_clip=3), shuffle=False)
    first, second = ([b["frame_indices"][:, 0] for b in loader] for _ in range(2))
    assert all(len(starts.unique()) > 2 for starts in first)
    assert any(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert any(len(starts.view(-1, 3)[0].unique()) > 1 for starts in first)


@pytest.mark.slow
def test_a_state_with_another_view_is_refused(moments: Synthetic) -> None:
    state = LatentLoader(moments.url, batch_size=2, view=Window(4)).state_dict()
    LatentLoader(moments.url, batch_size=2, view=Window(4)).load_state_dict(state)
    for view in (Window(4, step=2), Ends(), None):
        with pytest.raises(CacheError, match=r"view: .*'frames': 4.* in the state"):
            LatentLoader(moments.url, batch_size=2, view=view).load_state_dict(state)


@pytest.mark.slow
def test_middles_of_causal_latents_are_refused_unless_wanted(causal: Synthetic) -> None:
    for view in (Window(4), Window(4, start="all"), Window(4, step=2, start="first")):
        with pytest.raises(
            ConfigError, match=r"Synthetic has seen the frames before it.*middle=True"
        ):
            LatentLoader(causal.url, view=view)
    whole = open_cache(causal.url)
    for view in (Window(4, start="first"), Window(4, middle=True), Window(12)):
        for batch in LatentLoader(causal.url, view=view):
            for key, latents, frames in zip(
                batch["key"], batch["latents"], batch["frame_indices"], strict=True
            ):
                assert torch.equal(latents, whole[key]["latents"][:, frames])


def test_first_frames_are_refused_where_they_have_seen_the_whole_clip(tmp_path: Path) -> None:
    cache = write_cache(str(tmp_path), exactness="exact", buckets={"45x16x16": 2})
    with pytest.raises(ConfigError, match="has seen all of the clip"):
        LatentLoader(cache.url, view=Window(4, start="first"))


def test_clips_that_are_too_short_are_named(moments: Synthetic) -> None:
    with pytest.raises(ConfigError, match=r"10 latent frames.*9x16x16 have only 9.*where="):
        LatentLoader(moments.url, view=Window(10))
    where = "bucket not in ('9x16x16')"
    loader = LatentLoader(moments.url, view=Window(10), where=where)
    assert {batch["bucket"] for batch in loader} == {"12x16x24"}


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (3, "is no view"),
        (Window, "is no view"),
        (lambda *_: 3, "make returned int"),
        (lambda *_: {"key": 3}, "gives key"),
        (lambda r, a, _: {"x": a["latents"][:, : 1 + r.column("row") % 2]}, "make no batch"),
        (lambda r, *_: {f"x{r.column('row') % 2}": 0}, "the same names"),
    ],
)
def test_what_is_no_view_is_refused(view: Any, message: str, moments: Synthetic) -> None:
    with pytest.raises(ConfigError, match=message):
        list(LatentLoader(moments.url, view=view))


@pytest.mark.parametrize("frames", [[], [-1], [99], range(3, 3), 5, [0.5], "1"])
def test_picks_of_no_frames_are_refused(frames: Any, moments: Synthetic) -> None:
    class Bad:
        def pick(self, record: Record, draw: torch.Generator) -> Pick:
            return Pick(frames=frames)

    with pytest.raises(
        ConfigError, match=r"Pick at least one, and only those|Give a list of whole numbers"
    ):
        list(LatentLoader(moments.url, view=Bad()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 0}, "frames is 0"),
        ({"frames": 4, "step": 0}, "step is 0"),
        ({"frames": 4, "start": "last"}, "start 'last'"),
        ({"frames": 4, "start": "all", "per_clip": 2}, "per_clip 2"),
    ],
)
def test_windows_of_no_sense_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Window(**options)


def test_frames_and_a_view_are_not_taken_together(causal: Synthetic) -> None:
    with pytest.raises(ConfigError, match="both say which frames come"):
        LatentLoader(causal.url, frames=5, view=Window(2))


def test_layout_and_names(causal: Synthetic) -> None:
    plain = LatentLoader(causal.url, shuffle=False)
    for view in (None, Window(12)):
        loader = LatentLoader(
            causal.url, shuffle=False, view=view, layout="BTCHW", names={"latents": "mp4"}
        )
        for batch, other in zip(plain, loader, strict=True):
            assert "latents" not in other
            assert other["mp4"].is_contiguous()
            assert torch.equal(batch["latents"].transpose(1, 2), other["mp4"])
        plain.set_epoch(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "BTCH"}, "no order of BCTHW"),
        ({"layout": "CBTHW"}, "begins with B"),
        ({"layout": 3}, "no order of BCTHW"),
        ({"layout": "BCHW"}, "no place for the 12 latent frames"),
        ({"names": {"latent": "x"}}, "Did you mean 'latents'"),
        ({"names": {"latents": "key"}}, "have a key already"),
        ({"names": {"latents": "a", "key": "a"}}, "one name twice"),
        ({"names": ["latents"]}, "must say which name gets which"),
    ],
)
def test_layouts_and_names_of_no_sense_are_refused(
    options: Any, message: str, causal: Synthetic
) -> None:
    with pytest.raises(ConfigError, match=message):
        list(LatentLoader(causal.url, **options))


def test_ids_come_as_int64_and_images_without_a_time_axis(tmp_path: Path) -> None:
    cache = write_cache(str(tmp_path), stored="ids", dtype="uint16", buckets={"1x16x24": 3})
    (batch,) = LatentLoader(cache.url, layout="BHW", shuffle=False)
    assert (batch["latents"].dtype, batch["latents"].shape) == (torch.int64, (3, 2, 3))
    assert torch.equal(latentcache.open_cache(cache.url)[0]["latents"][0], batch["latents"][0])
