"""WebDataset, MDS and Parquet as their own readers see them, restated: samples by column."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

Sample = dict[str, Any]


def tensor(data: bytes, shape: list[int], dtype: str) -> torch.Tensor:
    """Bytes in C order as a tensor."""
    return torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype)).view(shape)


def webdataset_samples(root: Path) -> list[Sample]:
    """A sample is the files of one name up to its first dot."""
    found: dict[str, Sample] = {}
    for path in sorted(root.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                name, _, kind = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                data = file.read()
                found.setdefault(name, {})[kind] = (
                    torch.load(io.BytesIO(data), weights_only=True)
                    if kind.endswith("pth")
                    else json.loads(data)
                    if kind == "json"
                    else data.decode()
                )
    return list(found.values())


def mds_samples(root: Path) -> list[Sample]:
    """A shard: uint32 count, count + 1 offsets, JSON; a sample: a uint32 size per column, the columns."""
    found = []
    for shard in json.loads((root / "index.json").read_text())["shards"]:
        data = (root / shard["raw_data"]["basename"]).read_bytes()
        assert len(data) == shard["raw_data"]["bytes"]
        (count,) = struct.unpack_from("<I", data)
        assert count == shard["samples"]
        offsets = np.frombuffer(data, "<u4", count + 1, 4).tolist()
        assert offsets[-1] == len(data)
        for start in offsets[:-1]:
            sizes = np.frombuffer(data, "<u4", len(shard["column_names"]), start)
            ends = start + sizes.nbytes + np.cumsum(sizes)
            columns = zip(
                shard["column_names"], shard["column_encodings"], ends, sizes, strict=True
            )
            found.append(
                {name: _DECODE[kind](data[end - size : end]) for name, kind, end, size in columns}
            )
    return found


_DECODE: dict[str, Any] = {"bytes": bytes, "str": bytes.decode, "json": json.loads}


def hf_samples(root: Path) -> list[Sample]:
    """The rows of all files."""
    paths = sorted(root.glob("data/train-*"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]
