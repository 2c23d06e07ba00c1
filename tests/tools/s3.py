"""An S3 server on this machine: moto's, over HTTP, so that s3fs speaks the real protocol."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fsspec
import pytest
from moto.server import ThreadedMotoServer

KEY = "AKIAIOSFODNN7EXAMPLE"
SECRET = "wJalrXUtnFEMI-not-a-real-secret"


@dataclass(frozen=True)
class S3:
    """url: of a new, empty bucket. options: storage options that reach it."""

    url: str
    options: dict[str, Any]

    @property
    def filesystem(self) -> Any:
        return fsspec.filesystem("s3", **self.options, use_listings_cache=False)

    def put(self, name: str, data: bytes) -> str:
        url = f"{self.url}/{name}"
        self.filesystem.pipe_file(url, data)
        return url


@contextlib.contextmanager
def serve_s3() -> Iterator[str]:
    """Serve S3 within; yields the endpoint."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # it logs every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    fsspec.filesystem("s3").clear_instance_cache()
    server.stop()


def new_bucket(endpoint: str, key: str = KEY, secret: str = SECRET, **options: Any) -> S3:
    """Make a bucket at an endpoint; `options` are added to its storage options."""
    client = {"endpoint_url": endpoint, "region_name": "us-east-1"}
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    s3 = S3(f"s3://{bucket}", {"key": key, "secret": secret, "client_kwargs": client, **options})
    s3.filesystem.call_s3("create_bucket", Bucket=bucket)
    return s3


@pytest.fixture(scope="session", name="s3_server")
def s3_server_fixture() -> Iterator[str]:
    with serve_s3() as endpoint:
        yield endpoint


@pytest.fixture(name="s3")
def s3_fixture(s3_server: str) -> S3:
    return new_bucket(s3_server)
