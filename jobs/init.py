"""Write a configuration with every key explained, for an encoder."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from latentcache.encoders.commented import commented
from latentcache.errors import ConfigError, did_you_mean

from . import parsers
from .cli import OK, run_job, write_file

#: The examples: beside the jobs in a checkout, and in the installed package.
EXAMPLES = Path(__file__).parents[1] / "configs"


def main() -> int:
    """Parse the command line and run."""
    return run_job(init, parsers.init())


def init(args: argparse.Namespace) -> int:
    """List the encoders, or write the configuration of one; returns the exit status."""
    examples = {path.stem: path for path in sorted(EXAMPLES.glob("*.yaml"))}
    if args.encoder is None:
        for name, path in examples.items():
            print(f"{name:<14}{_kind(path):<18}{_said(path)}")
        print("\nlatentcache init ENCODER writes config.yaml for one; ENCODER may also be a kind.")
        return OK
    path = _chosen(examples, args.encoder)
    text = "\n".join([*_header(path), "", commented(_read(path))])
    if args.output == "-":
        print(text, end="")
        return OK
    output = Path(args.output)
    if output.exists():
        raise ConfigError(f"{output} exists, and is left as it is. Give another path with -o.")
    write_file(output, text.encode())
    print(
        f"{output}: set corpus.source, cache.url and what the encoder needs. Then, to see the plan:"
    )
    print(f"  latentcache precompute {shlex.quote(str(output))} --dry-run")
    return OK


def _chosen(examples: Mapping[str, Path], asked: str) -> Path:
    """Return the example of an encoder, or the first of a kind. Raises ConfigError."""
    kinds = {_kind(path): path for path in reversed(list(examples.values()))}
    if found := examples.get(asked) or kinds.get(asked):
        return found
    known = [*examples, *kinds]
    raise ConfigError(
        f"there is no example for an encoder {asked!r}.{did_you_mean(asked, known)} There are: "
        f"{', '.join(examples)}; or, by kind: {', '.join(sorted(kinds))}"
    )


def _read(path: Path) -> dict[str, Any]:
    raw: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return raw


def _kind(path: Path) -> str:
    return str(_read(path)["encoder"]["kind"])


def _header(path: Path) -> list[str]:
    """Return the comment at the top of an example."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return lines[: next(n for n, line in enumerate(lines) if not line.startswith("#"))]


def _said(path: Path) -> str:
    said = " ".join(line.removeprefix("#").strip() for line in _header(path))
    return said.partition(". ")[0].rstrip(".")


if __name__ == "__main__":
    sys.exit(main())
