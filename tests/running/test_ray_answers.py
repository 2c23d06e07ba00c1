"""What answers at the address of a Ray cluster and is none, or is one that falls silent: real sockets."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from latentcache.config.sections import RunConfig
from latentcache.errors import ConfigError
from latentcache.running import ray_address
from latentcache.running.driver import check_device
from tests.tools.clusters import end_cluster, start_cluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning"),
]

ROOT = Path(__file__).parents[2]
#: Settings, and that those of the other side were seen: with these a connection of HTTP/2 begins.
HANDSHAKE = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]) + bytes([0, 0, 0, 4, 1, 0, 0, 0, 0])
HTTP = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
PATIENCE_S = 120
#: Bytes of a control service after which joining waits for more, in Ray's own code.
SOME_BYTES = 1800

Talk = Callable[[socket.socket], object]


@contextlib.contextmanager
def serving(talk: Talk) -> Iterator[str]:
    """Serve at every address of this machine: Ray takes another one than that of the loopback."""
    with socket.create_server(("0.0.0.0", 0)) as server:
        threading.Thread(target=accept, args=(server, talk), daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def accept(server: socket.socket, talk: Talk) -> None:
    with contextlib.ExitStack() as kept, contextlib.suppress(OSError):
        while True:
            client = kept.enter_context(server.accept()[0])
            threading.Thread(target=attended, args=(client, talk), daemon=True).start()


def attended(client: socket.socket, talk: Talk) -> None:
    with contextlib.suppress(OSError):
        talk(client)


def say_not_found(client: socket.socket) -> None:
    client.recv(1000)
    client.sendall(HTTP)
    client.close()


@pytest.mark.parametrize(
    "talk",
    [
        pytest.param(lambda _: None, id="silent"),
        pytest.param(say_not_found, id="http"),
        pytest.param(lambda client: client.close(), id="closes at once"),
        pytest.param(lambda client: client.sendall(HANDSHAKE), id="stalls after the handshake"),
    ],
)
def test_what_accepts_connections_and_is_no_ray_is_named_with_where_its_address_is(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_address, "ANSWER_S", 2.0)
    with serving(talk) as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        expected = (
            rf"{address}, the address that the environment variable RAY_ADDRESS.* as Ray does"
        )
        with pytest.raises(ConfigError, match=expected):
            check_device(RunConfig())


def test_auto_without_ray_is_said_before_anything_is_probed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ray_address, "_ASKING", lonely(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(
        ConfigError, match=r"RAY_ADDRESS gives: no Ray runs on this machine\. Nothing"
    ):
        check_device(RunConfig())


def lonely(folder: Path) -> Path:
    """Return `ray_asking` as it is where no Ray runs, which other tests may have started here."""
    path = folder / "asking.py"
    find = "services.find_gcs_addresses = set\nservices.find_bootstrap_address = lambda _: None\n"
    text = ray_address._ASKING.read_text()
    path.write_text(text.replace("_AUTH_ADVICE =", find + "_AUTH_ADVICE =", 1))
    return path


@pytest.mark.parametrize("address", ["nowhere", ":", "10.0.0.1:x"])
def test_what_is_no_address_is_said(address: str) -> None:
    with pytest.raises(ConfigError, match="an address is `auto` or host:port"):
        check_device(RunConfig(ray_address=address))


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    cluster = start_cluster(num_cpus=1)
    yield cluster.address
    end_cluster(cluster)


def test_a_real_cluster_answers(cluster: str) -> None:
    check_device(RunConfig(ray_address=cluster))


@contextlib.contextmanager
def stalling(target: str, num_bytes: int) -> Iterator[str]:
    """Pass on what a server says, up to so many bytes in all."""
    host, _, port = target.rpartition(":")
    left = num_bytes

    def answer(client: socket.socket, server: socket.socket) -> None:
        nonlocal left
        with contextlib.suppress(OSError):
            while (data := server.recv(1 << 16)) and (left := left - len(data)) > 0:
                client.sendall(data)
            threading.Event().wait(PATIENCE_S)

    def talk(client: socket.socket) -> None:
        with socket.create_connection((host, int(port))) as server:
            threading.Thread(target=answer, args=(client, server), daemon=True).start()
            while data := client.recv(1 << 16):
                server.sendall(data)

    with serving(talk) as address:
        yield address


@pytest.mark.parametrize("num_bytes", [300, SOME_BYTES])
def test_a_cluster_that_falls_silent_while_it_is_joined_is_named(
    cluster: str, num_bytes: int
) -> None:
    program = (
        "from latentcache.config.sections import RunConfig\n"
        "from latentcache.errors import ConfigError\n"
        "from latentcache.running.runners import ray_cluster\n"
        "ray_cluster.JOIN_S = 4\n"
        "try: ray_cluster.connect(RunConfig(runner='ray'))\n"
        "except ConfigError as error: print(error)\n"
        "from jobs.cli import leave\n"
        "leave(0)\n"
    )
    with stalling(cluster, num_bytes) as address:
        found = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "RAY_ADDRESS": address},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=True,
        )
    assert f"no Ray cluster at {address}, the address that the environment variable" in found.stdout
    assert "joining it took more than 4 s" in found.stdout
