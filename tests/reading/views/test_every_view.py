"""Every view on 1 and 3 ranks, with 0 and 2 workers, after kills: the same samples in the same order.

That these samples are slices of the whole clips is shown view by view, beside this file.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from latentcache.core.spec import FrameRule, IdSpec
from latentcache.reading.loader.loader import LatentLoader
from latentcache.reading.views.multiscale import MultiScale
from latentcache.reading.views.protocol import Pick, Record
from latentcache.reading.views.sparse import Sparse
from latentcache.reading.views.tokens import Tokens
from latentcache.reading.views.window import Window
from tests.tools.synthetic import Synthetic, make_spec, write_cache

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]
#: Batches that are taken before a kill.
TAKEN = 2
#: What the server that workers are forked from imports once for all of them.
PRELOADED = ["torch", "latentcache", "tests.reading.views.test_every_view"]


class Ends:
    """A view of the tests' own: the first and the last latent frame, and a random number."""

    def pick(self, record: Record, draw: torch.Generator) -> Pick:
        number = int(torch.randint(1000, (), generator=draw))
        return Pick(frames=[record.num_frames - 1, 0], facts={"number": number})

    def make(self, record: Record, arrays: Any, pick: Pick) -> dict[str, Any]:
        return {"latents": arrays["latents"], "number": torch.tensor(pick.facts["number"])}


def turned(record: Record, arrays: Any, pick: Pick) -> dict[str, Any]:
    """The whole, backwards."""
    return {"latents": arrays["latents"].flip(1)}


def draw(num_frames: int, generator: torch.Generator) -> tuple[list[int], list[int]]:
    order = torch.randperm(num_frames, generator=generator).tolist()
    return order[:1], order[1:4]


def doubled(ids: torch.Tensor) -> torch.Tensor:
    """Stands for a quantiser's input of ids [1, n]."""
    return torch.stack([ids, 2 * ids], dim=-1)[:, :-1].float()


#: The cache that each is of, and the view.
VIEWS: Mapping[str, tuple[str, Callable[[], Any]]] = {
    "window": ("clips", lambda: Window(4)),
    "window, step": ("clips", lambda: Window(3, step=2)),
    "window, several per clip": ("clips", lambda: Window(4, per_clip=2)),
    "window, first": ("clips", lambda: Window(5, start="first")),
    "window, all": ("clips", lambda: Window(6, start="all")),
    "window, on into the next clip": ("scenes", lambda: Window(11, start="all")),
    "window, on, random": ("scenes", lambda: Window(5, step=2, per_clip=2)),
    "window, across segments": ("scenes", lambda: Window(9, start="all", segment=None)),
    "sparse": ("clips", lambda: Sparse(draw, at_most=6)),
    "tokens": ("ids", lambda: Tokens(positions=True, bos=0, offset=1)),
    "tokens, context": ("ids", lambda: Tokens(5, shift=True)),
    "multi-scale": ("scales", lambda: MultiScale(doubled)),
    "object": ("clips", Ends),
    "function": ("clips", lambda: turned),
}


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Synthetic]:
    folder = tmp_path_factory.mktemp("caches")
    spec = make_spec("uint16", stored="ids")
    scales = IdSpec(codebook_size=1 << 16, scales=(1, 2))
    image = {"frame_rule": FrameRule(maximum=1), "ids": scales, "stride": (1, 8, 8)}
    scenes: dict[str, Any] = {"per_source": 3, "segment": lambda _, frame: frame // 13}
    some: dict[str, dict[str, Any]] = {
        "clips": {"stored": "moments", "buckets": {"9x16x16": 7, "12x16x24": 6}},
        "scenes": {"buckets": {"8x16x16": 11}, **scenes},
        "ids": {"stored": "ids", "dtype": "uint16", "buckets": {"4x16x24": 9}},
        "scales": {"spec": type(spec)(**{**vars(spec), **image}), "buckets": {"1x16x16": 9}},
    }
    return {
        name: write_cache(
            str(folder / name), by_frame=name != "scales", failed=_failed(options), **options
        )
        for name, options in some.items()
    }


def _failed(options: Mapping[str, Any]) -> list[tuple[str, int]]:
    return [(name, 2) for name in options["buckets"]]


def loader_of(name: str, caches: Mapping[str, Synthetic], **options: Any) -> LatentLoader:
    return at(name, caches[VIEWS[name][0]].url, **options)


def at(name: str, url: str, **options: Any) -> LatentLoader:
    view = VIEWS[name][1]()
    return LatentLoader(url, batch_size=2, view=view, seed=3, uneven="exact", **options)


def plain(batches: Any) -> list[Any]:
    return [
        [(k, v.tolist() if isinstance(v, torch.Tensor) else v) for k, v in sorted(batch.items())]
        for batch in batches
    ]


def placed(ranks: list[list[Any]]) -> list[Any]:
    """Return the batches of ranks by their places."""
    return [batch for step in itertools.zip_longest(*ranks) for batch in step if batch]


@pytest.mark.slow
@pytest.mark.parametrize("name", VIEWS)
def test_ranks_and_resuming_change_neither_samples_nor_order(
    name: str, caches: Mapping[str, Synthetic]
) -> None:
    first, second = (plain(loader_of(name, caches)) for _ in range(2))
    assert first == second
    ranks = [loader_of(name, caches, rank=rank, world_size=3) for rank in range(3)]
    steps = [plain(itertools.islice(loader, 1)) for loader in ranks]
    state = json.loads(json.dumps(ranks[0].state_dict()))  # as it is stored
    for world_size in (1, 3):
        resumed = [
            loader_of(name, caches, rank=rank, world_size=world_size) for rank in range(world_size)
        ]
        for loader in resumed:
            loader.load_state_dict(state)
        assert placed(steps) + placed([plain(loader) for loader in resumed]) == first


def through(loader: LatentLoader, num_workers: int, method: str = "fork") -> Iterator[Any]:
    context: Any = multiprocessing.get_context(method) if num_workers else None
    if num_workers and method == "forkserver":
        context.set_forkserver_preload(PRELOADED)
    return iter(
        DataLoader(
            loader, batch_size=None, num_workers=num_workers, multiprocessing_context=context
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["window, on into the next clip", "sparse", "tokens, context"])
def test_workers_change_nothing(name: str, caches: Mapping[str, Synthetic]) -> None:
    check_workers(name, caches)


@pytest.mark.long
@pytest.mark.parametrize("name", VIEWS)
def test_workers_change_nothing_of_any_view(name: str, caches: Mapping[str, Synthetic]) -> None:
    check_workers(name, caches)


def check_workers(name: str, caches: Mapping[str, Synthetic]) -> None:
    whole = plain(loader_of(name, caches))
    for world_size in (1, 3):
        ranks = [
            plain(through(loader_of(name, caches, rank=rank, world_size=world_size), 2))
            for rank in range(world_size)
        ]
        assert placed(ranks) == whole


def killed(name: str, url: str, states: Path, num_workers: int) -> None:
    """Take some batches, note the state after each, and die.

    Workers are its own children, which end when it does; those of a fork server would not notice.
    """
    loader = at(name, url)
    with states.open("w", encoding="utf-8") as file:
        for n, batch in enumerate(through(loader, num_workers, "spawn"), 1):
            line = {"state": loader.state_dict(n), "batch": plain([batch])[0]}
            file.write(json.dumps(line) + "\n")
            file.flush()
            if n == TAKEN:
                os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.long
@pytest.mark.timeout(900)  # ten processes begin, however busy the machine is
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("name", VIEWS)
def test_a_killed_process_goes_on_where_it_was(
    name: str, num_workers: int, caches: Mapping[str, Synthetic], tmp_path: Path
) -> None:
    """No worker is forked here from a process with threads, and only the test's own limit ends a wait."""
    whole = json.loads(json.dumps(plain(loader_of(name, caches))))
    states = tmp_path / "states"
    url = caches[VIEWS[name][0]].url
    context: Any = multiprocessing.get_context("spawn")  # a program of its own, as a trainer is
    process = context.Process(target=killed, args=(name, url, states, num_workers))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    lines = [json.loads(line) for line in states.read_text(encoding="utf-8").splitlines()]
    assert [line["batch"] for line in lines] == whole[:TAKEN]
    for world_size in (1, 3):
        ranks = [
            loader_of(name, caches, rank=rank, world_size=world_size) for rank in range(world_size)
        ]
        for loader in ranks:
            loader.load_state_dict(lines[-1]["state"])
        rest = [plain(through(loader, num_workers, "forkserver")) for loader in ranks]
        assert json.loads(json.dumps(placed(rest))) == whole[TAKEN:]
