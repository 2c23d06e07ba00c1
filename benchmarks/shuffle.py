"""Quality of shuffles, simulated: how many shards a global batch meets, and how much is open for that.

`python benchmarks/shuffle.py [--samples N] [--json FILE]`

A shard is open from the step that takes its first sample to the one that takes its last. A loader
that downloads whole shards has as many bytes on disk; latentcache reads each sample by itself and holds
none of them. mosaicml-streaming's orders come from its own functions, if it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.loaders import mosaic
from latentcache.reading.order.epoch import BucketShards, Order

Int64 = npt.NDArray[np.int64]

SHARD_SAMPLES = 32
SAMPLE_BYTES = 2_246_400
BATCH_SIZE, NUM_RANKS, NUM_WORKERS = 8, 8, 4
STEP_SAMPLES = BATCH_SIZE * NUM_RANKS
MANY_STEPS = 16
POOLS_GB = (1, 4, 9.3, 18.5)
BLOCKS = (1024, 4096)
#: Canonical nodes of py1s by default, for one node.
PY1S_NODES = 64


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Figures of one order: means over the steps of an epoch, and the most that was open.

    shards_in_many: distinct shards in MANY_STEPS steps. An order that walks through as many shards side
    by side as a step has samples does not raise it.
    """

    order: str
    shards_a_step: float
    shards_in_many: float
    open_gb: float
    most_open_gb: float


def quality(name: str, steps: Int64) -> Quality:
    """Measure an order. steps: numbers of the samples [steps, STEP_SAMPLES]."""
    shards = steps // SHARD_SAMPLES
    many = shards.reshape(-1, MANY_STEPS * STEP_SAMPLES)
    num_steps = len(shards)
    first = np.full(int(shards.max()) + 1, num_steps)
    last = np.zeros_like(first)
    at = np.arange(num_steps)[:, None]
    np.minimum.at(first, shards, at)
    np.maximum.at(last, shards, at)
    opened = np.bincount(first, minlength=num_steps + 1)[:num_steps].cumsum()
    closed = np.bincount(last + 1, minlength=num_steps + 1)[:num_steps].cumsum()
    open_gb = (opened - closed) * SHARD_SAMPLES * SAMPLE_BYTES / 1e9
    return Quality(
        order=name,
        shards_a_step=_distinct(shards),
        shards_in_many=_distinct(many),
        open_gb=float(open_gb.mean()),
        most_open_gb=float(open_gb.max()),
    )


def _distinct(rows: Int64) -> float:
    return float(np.mean([len(np.unique(row)) for row in rows]))


def ours(num_samples: int, pool_bytes: int, seed: int) -> Int64:
    """latentcache's order: each step is NUM_RANKS batches in a row."""
    sizes = np.full(num_samples // SHARD_SAMPLES, SHARD_SAMPLES, np.int64)
    order = Order(seed=seed, batch_size=BATCH_SIZE, pool_bytes=pool_bytes)
    batches = order.batches([BucketShards(num_samples=sizes, sample_bytes=SAMPLE_BYTES)], 0)
    ids = [np.asarray(b.shards) * SHARD_SAMPLES + np.asarray(b.rows) for b in batches]
    return np.concatenate(ids).reshape(-1, STEP_SAMPLES)


def mosaics(algo: str, num_samples: int, block: int, nodes: int, seed: int) -> Int64:
    """An order of mosaicml-streaming on one node: at each step every rank's next worker delivers."""
    sizes = np.full(num_samples // SHARD_SAMPLES, SHARD_SAMPLES, np.int64)
    shuffle = mosaic.load("streaming.base.shuffle").get_shuffle
    partition = mosaic.load("streaming.base.partition").get_partitions
    ids = shuffle(algo, sizes, nodes, seed, 0, block)
    places = partition("relaxed", num_samples, nodes, 1, NUM_RANKS, NUM_WORKERS, BATCH_SIZE)
    ranks_workers_batches = places[0]
    steps = ranks_workers_batches.transpose(2, 1, 0, 3).reshape(-1, STEP_SAMPLES)
    return np.asarray(ids[steps[(steps >= 0).all(axis=1)]])


def permutation(num_samples: int, seed: int) -> Int64:
    """A permutation of all samples."""
    return np.random.default_rng(seed).permutation(num_samples).reshape(-1, STEP_SAMPLES)


def orders(num_samples: int, seed: int) -> Iterator[tuple[str, Callable[[], Int64]]]:
    """Names of the orders, and what makes each."""
    for gb in POOLS_GB:
        yield (
            f"latentcache, pool of {gb:g} GB",
            lambda gb=gb: ours(num_samples, int(gb * 1e9), seed),
        )
    if importlib.util.find_spec("streaming"):
        for what, algo, block, nodes in mosaic_variants():
            yield (
                f"mosaicml-streaming {algo}, {what}",
                lambda a=algo, b=block, n=nodes: mosaics(a, num_samples, b, n, seed),
            )
    yield "full permutation", lambda: permutation(num_samples, seed)


def mosaic_variants() -> Iterator[tuple[str, str, int, int]]:
    """What is special, algorithm, block and canonical nodes; py1s has no blocks."""
    for nodes in (1, PY1S_NODES):
        yield f"canonical nodes: {nodes}", "py1s", BLOCKS[0], nodes
    for algo in ("py1e", "py1br"):
        for block in BLOCKS:
            yield f"block of {block}", algo, block, 1


def markdown(found: list[Quality]) -> str:
    """The table."""
    head = ["order", "shards a step", f"shards in {MANY_STEPS} steps", "GB open", "most"]
    rows = [
        [q.order, *(f"{x:.1f}" for x in (q.shards_a_step, q.shards_in_many))]
        + [f"{x:.1f}" for x in (q.open_gb, q.most_open_gb)]
        for q in found
    ]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * 5, *rows])


def main() -> None:
    """Simulate every order."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=65_536, help="of an epoch (65,536)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    group = STEP_SAMPLES * MANY_STEPS
    if args.samples < group or args.samples % group:
        parser.error(
            f"--samples must be a multiple of {group}, which makes {MANY_STEPS} whole steps"
        )
    if not importlib.util.find_spec("streaming"):
        print("mosaicml-streaming is not installed: its orders are left out", file=sys.stderr)
    found = [quality(name, make()) for name, make in orders(args.samples, args.seed)]
    print(
        f"{args.samples:,} samples of {SAMPLE_BYTES / 1e6:.2f} MB, {SHARD_SAMPLES} a shard; steps of "
        f"{STEP_SAMPLES}: {NUM_RANKS} ranks of {NUM_WORKERS} workers, batches of {BATCH_SIZE}.\n"
    )
    print(markdown(found))
    if args.json:
        args.json.write_text(json.dumps([asdict(q) for q in found], indent=2) + "\n")


if __name__ == "__main__":
    main()
