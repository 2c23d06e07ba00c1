"""The contestants of benchmarks/loader.py: one module per peer, each with its READERS."""

from __future__ import annotations

from benchmarks.loaders import bare, files, litdata, mosaic, ours, webdataset
from benchmarks.loaders.reader import Reader

READERS: tuple[Reader, ...] = (
    *ours.READERS,
    *mosaic.READERS,
    *litdata.READERS,
    *webdataset.READERS,
    *files.READERS,
    *bare.READERS,
)
