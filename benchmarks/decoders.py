"""Decoders by themselves on videos: PyAV, decord, and torchcodec where it is installed.

    python benchmarks/decoders.py FOLDER [--threads N] [--seconds 8] [--seeks 20]

Each with one thread, and with N: as many as there are cores, if omitted. Each decodes each video in a
process of its own: all frames in sequence to RGB, again and again until `--seconds` have passed, opening
the file each time, then some frames by themselves, in random order. Prints frames per second, frames per
second of the processors' time, milliseconds for a frame by itself, the most memory that the process has
held, and whether the frames are bit for bit those of PyAV with one thread.

torchcodec needs FFmpeg's libraries on the system.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import machine

#: All frames of a video, and the frame of a number.
Decoder = tuple[Callable[[], Iterator[Any]], Callable[[int], Any]]


def decord_of(path: str, threads: int) -> Decoder:
    """Open with decord."""
    import decord

    def every() -> Iterator[Any]:
        reader = decord.VideoReader(path, num_threads=threads)
        for _ in range(len(reader)):
            yield reader.next().asnumpy()

    reader = decord.VideoReader(path, num_threads=threads)
    return every, lambda number: reader[number].asnumpy()


def pyav_of(path: str, threads: int) -> Decoder:
    """Open with PyAV, threads for frames. A frame by itself is found by its time, which a plan knows."""
    import av

    def opened() -> tuple[Any, Any]:
        container = av.open(path)
        stream = container.streams.video[0]
        stream.thread_type = "FRAME" if threads > 1 else "NONE"
        stream.codec_context.thread_count = threads
        return container, stream

    def every() -> Iterator[Any]:
        container, stream = opened()
        with container:
            for frame in container.decode(stream):
                yield frame.to_ndarray(format="rgb24")

    container, stream = opened()
    with container:
        times = [frame.pts for frame in container.decode(stream)]
    container, stream = opened()

    def one(number: int) -> Any:
        container.seek(times[number], stream=stream)
        for frame in container.decode(stream):
            if frame.pts >= times[number]:
                return frame.to_ndarray(format="rgb24")
        raise IndexError(number)

    return every, one


def torchcodec_of(path: str, threads: int) -> Decoder:
    """Open with torchcodec, with its exact way to seek."""
    from torchcodec.decoders import VideoDecoder

    def opened() -> Any:
        options = {"num_ffmpeg_threads": threads, "seek_mode": "exact"}
        return VideoDecoder(path, dimension_order="NHWC", **options)

    def every() -> Iterator[Any]:
        decoder = opened()
        for number in range(len(decoder)):
            yield decoder[number].numpy()

    decoder = opened()
    return every, lambda number: decoder[number].numpy()


#: The first is what the others' frames are compared with.
WAYS: dict[str, Callable[[str, int], Decoder]] = {
    "PyAV": pyav_of,
    "decord": decord_of,
    "torchcodec": torchcodec_of,
}


def installed() -> list[str]:
    """Return the decoders that are installed, and say which are not."""
    packages = {"PyAV": "av", "decord": "decord", "torchcodec": "torchcodec"}
    missing = [name for name, package in packages.items() if find_spec(package) is None]
    for name in missing:
        print(f"without {name}, which is not installed: pip install {packages[name]}")
    return [name for name in WAYS if name not in missing]


def peak_mb() -> int:
    """Return the most memory that this process has held; its parent's does not count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM:"))


def measure(way: str, threads: int, path: str, seconds: float, seeks: int) -> dict[str, Any]:
    """Decode a video in one way, in this process."""
    every, one = WAYS[way](path, threads)
    digest, num_frames = hashlib.blake2b(), 0
    for frame in every():  # warms up, too
        digest.update(frame.tobytes())
        num_frames += 1
    done, began, cpu_began = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        done += sum(1 for _ in every())
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    seek_s = []
    for number in random.Random(0).choices(range(num_frames), k=seeks):
        before = time.perf_counter()
        one(number)
        seek_s.append(time.perf_counter() - before)
    return {
        "digest": digest.hexdigest(),
        "fps": done / wall_s,
        "fps_cpu": done / cpu_s,
        "seek_ms": 1000 * statistics.median(seek_s),
        "peak_mb": peak_mb(),
    }


def apart(way: str, threads: int, path: Path, seconds: float, seeks: int) -> dict[str, Any]:
    """Measure in a process of its own; {"error": ...} where that fails."""
    own = [str(word) for word in (way, threads, path, seconds, seeks)]
    command = [sys.executable, __file__, "--one", *own]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return {"error": last.replace("|", "/")[-80:]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def line_of(name: str, way: str, threads: int, found: dict[str, Any], expected: str) -> str:
    """Return a line of the table. expected: the digest of the frames as they should be."""
    head = f"| {name} | {way} | {threads} |"
    if "error" in found:
        return f"{head} {found['error']} | | | | |"
    bits = "equal" if found["digest"] == expected else "differ"
    return (
        f"{head} {found['fps']:.0f} | {found['fps_cpu']:.0f} | {found['seek_ms']:.1f} ms | "
        f"{found['peak_mb']} MB | {bits} |"
    )


def main() -> None:
    """Parse the command line and measure."""
    if sys.argv[1:2] == ["--one"]:
        way, threads, path, seconds, seeks = sys.argv[2:]
        print(json.dumps(measure(way, int(threads), path, float(seconds), int(seeks))))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--seeks", type=int, default=20)
    args = parser.parse_args()
    print(f"{machine()}, {os.getloadavg()[0]:.1f} busy")
    ways = [(way, threads) for way in installed() for threads in sorted({1, args.threads})]
    print(
        "\n| video | decoder | threads | frames/s | per CPU second | a frame by itself | memory | bits |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for path in sorted(p for p in args.folder.iterdir() if p.is_file()):
        expected = ""
        for way, threads in ways:
            found = apart(way, threads, path, args.seconds, args.seeks)
            if (way, threads) == ways[0]:
                expected = found.get("digest", "")
            print(line_of(path.name, way, threads, found, expected), flush=True)


if __name__ == "__main__":
    main()
