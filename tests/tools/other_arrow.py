"""Tables as another version of Arrow writes them: the same rows in other bytes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from unittest import mock

import pyarrow.parquet as pq


@contextlib.contextmanager
def another_arrow() -> Iterator[None]:
    """Write the cache's tables without dictionaries."""
    plain = functools.partial(pq.ParquetWriter, use_dictionary=False)
    with mock.patch("latentcache.format.tables.pq.ParquetWriter", plain):
        yield
