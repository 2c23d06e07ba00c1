"""A tour of latentcache in half a minute: synthetic clips are encoded, the run is killed and then finished.

`python examples/tour.py` runs the commands that it prints, in its own folder.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

import latentcache

CONFIG = """\
corpus: {{source: {folder}/clips}}
clips: {{frames: 9, select: all, size: [96, 160]}}
encoder: {{kind: dct}}                  # a 3-D DCT: needs no weights
cache: {{url: {folder}/cache, shard_clips: 2}}
run: {{runner: local, decode_processes: 1}}
"""
NUM_VIDEOS, FRAMES, HEIGHT, WIDTH = 8, 90, 96, 160


def main() -> int:
    """Take the tour and return 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", type=Path, help="an empty folder to keep (default: a temporary one)"
    )
    folder = parser.parse_args().folder
    if folder is not None:
        tour(folder)
        return 0
    with tempfile.TemporaryDirectory(prefix="latentcache-tour-") as temporary:
        tour(Path(temporary))
    return 0


def tour(folder: Path) -> None:
    """Make clips and run one job after another on them."""
    config, cache = folder / "config.yaml", folder / "cache"
    say(f"{NUM_VIDEOS} short videos with captions, and one file that is not a video")
    make_clips(folder / "clips")
    config.write_text(CONFIG.format(folder=folder))
    print(config.read_text())
    say("Encode them, and kill the run with SIGKILL in the middle")
    kill_midway(["precompute", str(config)], cache)
    say(
        "Finish it: committed clips are not encoded again. Because of the bad file the exit status is 3"
    )
    run("resume", str(cache), expected=3)
    say("Check every byte")
    run("verify", str(cache))
    say("Read it as a trainer would")
    run("stream", str(cache), "--batch-size", "4")
    show_batch(cache)
    say("Look at it")
    if importlib.util.find_spec("matplotlib") is None:
        print("`latentcache report` needs: pip install -e '.[report]'")
    else:
        run("report", str(cache), "-o", str(folder / "report.html"), "--clips", "2")


def make_clips(folder: Path) -> None:
    """Write videos of a moving wave, each with a caption beside it, and one broken file."""
    folder.mkdir(parents=True)
    y, x = np.mgrid[:HEIGHT, :WIDTH] / 12
    for index in range(NUM_VIDEOS):
        with av.open(str(folder / f"wave{index}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=24)
            stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
            for frame in range(FRAMES):
                phase = frame / 8 + index
                waves = [np.sin(x + phase), np.sin(y - phase), np.sin(x * math.cos(index) + y)]
                pixels = (127.5 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode(None))
        (folder / f"wave{index}.txt").write_text(f"wave number {index}")
    (folder / "broken.mp4").write_text("<html>404</html>")


def kill_midway(arguments: list[str], cache: Path) -> None:
    """Run a job and kill it once it has committed two shards. Raises RuntimeError if it ends first."""
    print(f"$ latentcache {shlex.join(arguments)}", flush=True)
    job = subprocess.Popen(command(arguments))
    while len(committed(cache)) < 2:
        if job.poll() is not None:
            raise RuntimeError(f"the run ended too early, with exit status {job.returncode}")
        time.sleep(0.002)
    job.kill()
    job.wait()
    total = math.ceil(NUM_VIDEOS * (FRAMES // 9) / 2)
    print(f"... killed: {len(committed(cache))} of {total} shards are committed")


def committed(cache: Path) -> list[Path]:
    """Return the sample tables in the cache: there is one of each committed shard."""
    return list(cache.glob("samples/*/*.parquet"))


def run(*arguments: str, expected: int = 0) -> None:
    """Run a job to its end. Raises RuntimeError if its exit status is not the expected one."""
    print(f"$ latentcache {shlex.join(arguments)}", flush=True)
    status = subprocess.run(command(arguments), check=False).returncode
    if status != expected:
        raise RuntimeError(f"`latentcache {shlex.join(arguments)}` ended with exit status {status}")


def command(arguments: list[str] | tuple[str, ...]) -> list[str]:
    """Return the command line of a job in this environment."""
    return [sys.executable, "-m", "latentcache.jobs", *arguments]


def show_batch(cache: Path) -> None:
    """Print what a training step receives."""
    loader = latentcache.LatentLoader(cache, batch_size=4, seed=0)
    batch = next(iter(loader))
    print(f"a batch: latents {list(batch['latents'].shape)}, {batch['latents'].dtype}")
    print(f"captions: {batch['caption']}")
    print(f"state: {loader.state_dict()}")


def say(what: str) -> None:
    """Print a heading."""
    print(f"\n== {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
