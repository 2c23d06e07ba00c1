"""A corpus of a million sources, planned, grown by 1 % and recaptioned: seconds and memory.

    python benchmarks/grow.py [--sources 1000000] [--folder /tmp/grow]

Sources are rows of a Parquet table with one file behind them, and are not opened: what probing would find
is made up, so that only planning and its tables are measured. Nothing is encoded. Each step is a process
of its own. Memory is what the process holds for itself: not pages of files that it has mapped, which the
system drops when it needs room.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
import tempfile
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from latentcache.config.files import load_config
from latentcache.planning import planner
from latentcache.planning.grow import Difference
from tests.tools.caches import make_config

#: Frames of a source, and what is cut of it: one clip each.
FRAMES = 81
#: Between two looks at the memory.
LOOK_S = 0.02


class Made:
    """In the place of the processes that look at sources: an identity for each, at once."""

    window = 1

    def __enter__(self) -> Made:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing was started."""

    def probe(self, *_: object, **__: object) -> Future[dict[str, Any]]:
        found: Future[dict[str, Any]] = Future()
        found.set_result({"identity": "0123456789abcdef", "frames": FRAMES, "duration_s": 3.4})
        return found


def write_corpus(path: Path, video: Path, num: int, num_recaptioned: int) -> None:
    """Write a table of `num` sources; the first `num_recaptioned` have other captions."""
    numbers = pa.array(np.arange(num))
    words = pc.if_else(pc.less(numbers, num_recaptioned), "another", "a")
    text = numbers.cast(pa.string())
    table = pa.table(
        {
            "video": pa.repeat(str(video), num),
            "key": pc.binary_join_element_wise("clip-", pc.utf8_lpad(text, 8, "0"), ""),
            "frames": np.full(num, FRAMES),
            "fps": np.full(num, 24.0),
            "height": np.full(num, 480),
            "width": np.full(num, 832),
            "caption": pc.binary_join_element_wise(words, " caption of clip ", text, ""),
        }
    )
    pq.write_table(table, path)


class Own:
    """The most memory that a process holds for itself, by looking all the time, beside mapped files."""

    def __init__(self) -> None:
        self.first = self.peak = _own_bytes()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, _own_bytes())
            time.sleep(LOOK_S)


def _own_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))


def grow(path: str) -> tuple[float, int, int, int, int]:
    """Take in what a corpus has now.

    Returns seconds, sources that were probed, clips with other captions, and this process's own memory
    before, and the most of it.
    """
    config, found = load_config(path), list[Difference]()
    hooks = planner.Hooks(on_step=lambda _p, _s, difference: found.append(difference))
    own, before = Own(), time.perf_counter()
    with mock.patch.object(planner, "probing_pool", return_value=Made()):
        planner.grow_cache(config, hooks=hooks)
    took_s = time.perf_counter() - before
    return took_s, found[0].num_probed, found[0].num_relabelled, own.first, own.peak


def main() -> None:
    """Parse the command line, write the corpora and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=int, default=1_000_000)
    parser.add_argument("--folder", help="where to write (a temporary folder)")
    args = parser.parse_args()
    folder = Path(args.folder or tempfile.mkdtemp(prefix="latentcache-grow-"))
    folder.mkdir(parents=True, exist_ok=True)
    video, table = folder / "video.mp4", folder / "corpus.parquet"
    video.write_bytes(b"not opened")
    columns = {n: n for n in ("video", "key", "frames", "fps", "height", "width", "caption")}
    path = make_config(
        folder,
        table,
        str(folder / "cache"),
        corpus={"source": str(table), "columns": columns},
        clips={"frames": FRAMES, "size": [480, 832], "select": "first"},
        cache={"url": str(folder / "cache"), "shard_clips": 64},
    )
    one_percent = args.sources // 100
    steps = {
        "plan": (args.sources, 0),
        "the same again": (args.sources, 0),
        "grow by 1 %": (args.sources + one_percent, 0),
        "recaption 1 %": (args.sources + one_percent, one_percent),
    }
    spawn = multiprocessing.get_context("spawn")
    for name, (num, recaptioned) in steps.items():
        write_corpus(table, video, num, recaptioned)
        with ProcessPoolExecutor(1, mp_context=spawn) as process:
            took_s, probed, relabelled, before, peak = process.submit(grow, str(path)).result()
        print(
            f"{name:16}{took_s:>8.1f} s {probed:>9} probed {relabelled:>8} recaptioned; at most "
            f"{peak >> 20} MiB, {before >> 20} of them before: {(peak - before) / num:.0f} bytes a source",
            flush=True,
        )
    if args.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
