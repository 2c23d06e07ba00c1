"""How much of a remote file its identity costs."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest

from benchmarks import capped_s3
from latentcache.decoders.identity import BLOCK_BYTES, identify_url
from latentcache.storage.parts import ByteRange
from latentcache.storage.source_files import read_range
from latentcache.storage.urls import refused_scheme
from tests.tools.http_files import NewServer, serve

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]


@pytest.fixture(name="file")
def file_fixture(tmp_path: Path) -> Path:
    path = tmp_path / "bucket" / "in" / "long.mp4"
    path.parent.mkdir(parents=True)
    path.write_bytes(np.random.default_rng(0).bytes(20 << 20))
    return path


def test_over_http_the_three_blocks_are_read_and_nothing_else(file: Path) -> None:
    with serve(file.parent) as server:
        assert identify_url(f"{server.url}/long.mp4") == identify_url(str(file))
        assert server.num_bytes == 3 * BLOCK_BYTES


def test_a_host_of_ipv6_is_no_chain_of_file_systems(file: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with serve(file.parent, NewServer) as server:
        assert server.url.startswith("http://[::1]:")
        assert identify_url(f"{server.url}/long.mp4") == identify_url(str(file))
        part = ByteRange(file=f"{server.url}/long.mp4", offset=5, size=9)
        assert read_range(part.file, 5, 14) == file.read_bytes()[5:14]
        assert refused_scheme(part.url) is None


def test_on_s3_the_three_blocks_are_read_and_nothing_else(file: Path, tmp_path: Path) -> None:
    with capped_s3.running(tmp_path, rate=1e9) as server:
        before = server.num_bytes
        client = {"endpoint_url": server.endpoint, "region_name": "us-east-1"}
        options = {"key": "k", "secret": "s", "client_kwargs": client}
        found = identify_url("s3://bucket/in/long.mp4", options)
        assert found == identify_url(str(file))
        assert server.num_bytes - before == 3 * BLOCK_BYTES
