"""An estimate of a run beside the run itself: `python benchmarks/estimate.py --videos FOLDER`.

With --weights FOLDER (of taef2_encoder.pth and its decoder) a trained encoder is also tried.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from latentcache.config.sections import Config
from latentcache.core.machine import num_cpus
from latentcache.planning.planner import grow_cache, plan_corpus
from latentcache.planning.recipe import resolve_encoder
from latentcache.running.driver import Run
from latentcache.running.estimate import measure

BUCKETS = {"area": 147456, "multiple": 16, "aspect_ratios": ["16:9", "3:2"]}


def cases(weights: Path | None) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Configurations to compare, by name: one that decoding limits, and one that the encoder limits."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {
        "dct": {
            "clips": {"frames": 17, "select": "all", "buckets": BUCKETS},
            "encoder": {"kind": "dct"},
        }
    }
    if weights is not None:
        parts = {part: str(weights / f"taef2_{part}.pth") for part in ("encoder", "decoder")}
        found["taef2"] = {
            "clips": {"frames": 5, "select": "uniform:4", "size": [160, 240]},
            "encoder": {"kind": "taesd", "dtype": "float32", **parts},
        }
    return found


def compare(sections: Mapping[str, Mapping[str, Any]], videos: Path, num_clips: int) -> None:
    """Estimate, run, and print both."""
    with tempfile.TemporaryDirectory() as folder:
        rest = {
            "corpus": {"source": str(videos)},
            "cache": {"url": folder, "shard_clips": 8},
            "run": {"runner": "local"},
        }
        config = Config.model_validate({**rest, **sections})
        spec, identity = resolve_encoder(config)
        plan = plan_corpus(config, spec)
        said = measure(config, plan, spec, identity, num_clips=num_clips)
        prepared = grow_cache(config)
        run = Run(prepared, prepared.missing_shards())
        for _ in run.events():
            pass
    did = run.summary
    limits = ", ".join(f"{bucket.name}: {bucket.limit}" for bucket in said.buckets)
    for name, estimated, real, unit in (
        ("wall", said.wall_s(1), did.wall_s, "s"),
        ("stored", said.stored_bytes / 2**20, did.stored_bytes / 2**20, "MiB"),
    ):
        off = estimated / real - 1
        print(f"  {name:<8}{estimated:>9.1f} {unit:<4}said{real:>9.1f} {unit:<4}real{off:>+8.0%}")
    print(f"  {plan.num_clips} clips, {num_clips} per bucket measured; limits: {limits}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    print(f"{num_cpus()} CPUs, torch {torch.__version__}, load {os.getloadavg()}")
    for name, sections in cases(args.weights).items():
        print(name)
        for _ in range(args.repeat):
            compare(sections, args.videos, args.clips)


if __name__ == "__main__":
    main()
