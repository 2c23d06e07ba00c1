"""A corpus of a million sources, planned, grown by 1 % and recaptioned: seconds, and the largest memory.

    python benchmarks/grow.py [--sources 1000000] [--folder /tmp/grow]

Sources are rows of a Parquet table with one file behind them, and are not opened: what probing would find
is made up, so that only planning and its tables are measured. Nothing is encoded.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import tempfile
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from latentcache.config.files import load_config
from latentcache.planning import planner
from latentcache.planning.grow import Difference
from tests.tools.caches import make_config

#: Frames of a source, and what is cut of it: one clip each.
FRAMES = 81


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
    numbers = np.arange(num)
    words = np.where(numbers < num_recaptioned, "another", "a")
    table = pa.table(
        {
            "video": pa.array([str(video)] * num),
            "key": [f"clip-{n:08d}" for n in numbers],
            "frames": np.full(num, FRAMES),
            "fps": np.full(num, 24.0),
            "height": np.full(num, 480),
            "width": np.full(num, 832),
            "caption": [
                f"{word} caption of clip {n}" for word, n in zip(words, numbers, strict=True)
            ],
        }
    )
    pq.write_table(table, path)


def main() -> None:
    """Parse the command line, write the corpora and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=int, default=1_000_000)
    parser.add_argument("--folder", help="where to write (a temporary folder)")
    args = parser.parse_args()
    folder = Path(args.folder or tempfile.mkdtemp(prefix="latentcache-grow-"))
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
    config = load_config(str(path))
    one_percent = args.sources // 100
    steps = {
        "plan": (args.sources, 0),
        "the same again": (args.sources, 0),
        "grow by 1 %": (args.sources + one_percent, 0),
        "recaption 1 %": (args.sources + one_percent, one_percent),
    }
    with mock.patch.object(planner, "probing_pool", return_value=Made()):
        for name, (num, recaptioned) in steps.items():
            write_corpus(table, video, num, recaptioned)
            found: list[Difference] = []
            hooks = planner.Hooks(on_step=lambda _p, _s, difference: found.append(difference))  # noqa: B023
            before = time.perf_counter()
            planner.grow_cache(config, hooks=hooks)
            took_s = time.perf_counter() - before
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
            print(
                f"{name:16}{took_s:>8.1f} s {found[0].num_probed:>9} probed "
                f"{found[0].num_relabelled:>8} recaptioned; the process took at most {peak} MiB",
                flush=True,
            )
    if args.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
