"""Copy a cache, or some of its clips, into Zarr or Parquet; nothing is decoded or encoded by a model.

With --where or --keys only those ok clips are copied, so that two copies split a cache. Within a format
compressed bytes are copied as they are; to another one latents are compressed again, bit for bit the same.
A copy that was stopped goes on with the same command. Exit status: 0.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from latentcache.copying.selection import Selection
from latentcache.core.regular_files import read_regular
from latentcache.errors import ConfigError

from . import parsers
from .cli import run_job
from .derived import derive, split_words


def main() -> int:
    """Parse the command line and run."""
    return run_job(copy, parsers.copy())


def copy(args: argparse.Namespace) -> int:
    """Copy a cache; returns the exit status."""
    urls, overrides = split_words(args.caches)
    if len(urls) != 2:
        raise ConfigError(f"a copy takes a cache and where to copy it, and got {len(urls)} of them")
    keys = None if args.keys is None else read_keys(Path(args.keys))
    selection = Selection(where=args.where, keys=keys)
    source, target = urls
    return derive(
        args, "copy", [source], target, overrides, selection=selection, shard_format=args.format
    )


def read_keys(path: Path) -> frozenset[str]:
    """Read keys, one a line; blank lines and a byte order mark are no keys. Raises ConfigError."""
    try:
        text = read_regular(path, "utf-8-sig")
    except OSError as error:
        raise ConfigError(f"--keys: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--keys: {path} is no text in UTF-8; it has one key a line") from None
    keys = frozenset(line.removesuffix("\r") for line in text.split("\n") if line.strip())
    if not keys:
        raise ConfigError(f"--keys: {path} has no key in it")
    return keys


if __name__ == "__main__":
    sys.exit(main())
