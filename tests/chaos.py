"""Kills drivers, actors, decoding processes and machines of real runs, and checks that nothing is lost.

`python -m tests.chaos --seed 1 --minutes 10` runs it for as long as you like; the tests run it for a few.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from latentcache.format.paths import generation_path
from tests.tools.caches import (
    assert_same_cache,
    committed,
    make_config,
    make_corpus,
    run_job,
    start_job,
    written_once,
)

#: How a victim's command line is known. Ray names an actor's process after its class.
VICTIMS = {"actor": "ray::EncodeActor", "decoder": "latentcache.decoders.process"}
#: What is killed, by runner. The actors of a cluster are not of the driver's family.
MENU = {
    "ray": ["driver", "decoder", "actor"],
    "local": ["driver", "decoder"],
    "cluster": ["driver", "machine"],
}
MACHINE = {"num_cpus": 2, "num_gpus": 1, "object_store_memory": 80 << 20}
RUN_LIMIT_S = 240.0


def wait_for_commits(process: subprocess.Popen[str], cache: Path, count: int) -> bool:
    """Wait until `count` shards are committed; False where the run ended before."""
    while process.poll() is None:
        if len(committed(cache)) >= count:
            return True
        time.sleep(0.002)
    return False


def kill(process: subprocess.Popen[str], victim: str, rng: random.Random) -> bool:
    """kill -9 the driver, or one of its actors or decoding processes; False where there is none."""
    if victim == "driver":
        process.kill()
        process.wait()
        return True
    found = family_of(process, VICTIMS[victim])
    if not found:
        return False
    try:
        rng.choice(found).kill()
    except psutil.NoSuchProcess:
        return False
    return True


def family_of(process: subprocess.Popen[str], *names: str) -> list[psutil.Process]:
    """The processes that the driver has started and whose command line holds one of `names`."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    found = []
    for child in family:
        try:
            if any(name in " ".join(child.cmdline()) for name in names):
                found.append(child)
        except psutil.Error:  # gone, or a zombie
            continue
    return found


class Machines:
    """A cluster of a head and one more machine, which is taken away and given back."""

    def __init__(self) -> None:
        self._cluster = Cluster(initialize_head=True, head_node_args=MACHINE)
        self._node = self._add()

    def _add(self) -> Any:
        node = self._cluster.add_node(**MACHINE)
        self._cluster.wait_for_nodes()
        return node

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def kill(self) -> None:
        """Kill one with all that runs there, and give another."""
        self._cluster.remove_node(self._node, allow_graceful=False)
        self._node = self._add()

    def end(self) -> None:
        self._cluster.shutdown()


def run_with_kills(
    config: Path,
    cache: Path,
    rng: random.Random,
    victims: list[str],
    total: int,
    machines: Machines | None = None,
) -> Counter[str]:
    """Run to the end through one kill a victim; checks that nothing that is there is written again."""
    kills: Counter[str] = Counter()
    before: dict[str, tuple[int, int]] = {}
    job: tuple[str, Path] = ("precompute", config)
    plan = list(victims)
    while True:
        process = start_job(*job)
        orphans: list[psutil.Process] = []
        while plan:
            done = len(committed(cache))
            goal = rng.randint(min(done + 1, total), min(done + 4, total))
            if not wait_for_commits(process, cache, goal):
                break
            time.sleep(rng.random() * 0.05)
            orphans = family_of(process, *VICTIMS.values())
            if plan[0] == "machine" and machines is not None:
                machines.kill()
                kills[plan.pop(0)] += 1
            elif kill(process, plan[0], rng):
                kills[plan.pop(0)] += 1
            if process.poll() is not None:
                break
        out, err = process.communicate(timeout=RUN_LIMIT_S)
        if process.returncode == -9:
            _, alive = psutil.wait_procs(orphans, timeout=30)
            assert not alive, f"outlived their driver: {alive}"
        now = written_once(cache)
        rewritten = {name for name, facts in before.items() if now.get(name) != facts}
        assert not rewritten, f"written again: {rewritten}"
        if process.returncode != -9:
            assert process.returncode == 3, f"{process.returncode}\n{out}\n{err}"
            return kills
        before = now
        job = ("resume", cache) if (cache / generation_path(1)).exists() else job


def main() -> None:
    """Kill for a while, and say how often."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--runner", choices=("ray", "local", "cluster"), default="ray")
    args = parser.parse_args()
    rng, kills, rounds = random.Random(args.seed), Counter[str](), 0
    folder = Path(tempfile.mkdtemp(prefix="latentcache-chaos-"))
    corpus = make_corpus(folder / "corpus", 12, frames=41)
    machines = Machines() if args.runner == "cluster" else None
    run = {"runner": args.runner} if machines is None else {"ray_address": machines.address}
    clean = folder / "clean"
    slow = {"encoder": {"kind": "tests.tools.encoders.slow"}} if machines else {}
    run_job("precompute", make_config(folder, corpus, str(clean), **slow), status=3)
    ends = time.monotonic() + 60 * args.minutes
    while time.monotonic() < ends:
        cache = folder / f"cache{rounds}"
        config = make_config(folder, corpus, str(cache), run={"runner": "ray", **run}, **slow)
        victims = rng.choices(MENU[args.runner], k=rng.randint(2, 5))
        total = len(committed(clean))
        kills += run_with_kills(config, cache, rng, victims, total, machines)
        assert_same_cache(cache, clean)
        shutil.rmtree(cache)
        rounds += 1
        print(
            f"round {rounds}: {', '.join(f'{n} x {v}' for v, n in sorted(kills.items()))}",
            flush=True,
        )
    if machines is not None:
        machines.end()
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
