"""Write a configuration with every key explained, for an encoder."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from latentcache.config.files import validate
from latentcache.config.sections import Config
from latentcache.config.trainers import TRAINERS, convert
from latentcache.encoders.commented import commented
from latentcache.errors import ConfigError, did_you_mean
from latentcache.redaction import printable

from . import parsers
from .cli import OK, output_file, run_job, write_file
from .init_folders import looked_at

#: The examples: beside the jobs in a checkout, and in the installed package.
EXAMPLES = Path(__file__).parents[1] / "configs"


def main() -> int:
    """Parse the command line and run."""
    return run_job(init, parsers.init())


def init(args: argparse.Namespace) -> int:
    """List the encoders, or write the configuration of one; returns the exit status."""
    examples = {path.stem: path for path in sorted(EXAMPLES.glob("*.yaml"))}
    if args.trainer is not None:
        return _init_from(examples, args)
    if args.encoder is None:
        width = max(map(len, examples)) + 2
        for name, path in examples.items():
            print(f"{name:<{width}}{_kind(path):<18}{_said(path)}")
        print("\nlatentcache init ENCODER writes config.yaml for one; ENCODER may also be a kind.")
        return OK
    path = _chosen(examples, args.encoder)
    text = "\n".join([*_header(path), "", commented(_read(path))])
    if args.output == "-":
        print(text, end="")
        return OK
    output = output_file(args.output)
    if output.exists():
        raise ConfigError(f"{output} exists, and is left as it is. Give another path with -o.")
    write_file(output, text.encode())
    print(
        f"{output}: set corpus.source, cache.url and what the encoder needs. Then, to see the plan:"
    )
    print(f"  latentcache precompute {shlex.quote(str(output))} --dry-run")
    return OK


def _init_from(examples: Mapping[str, Path], args: argparse.Namespace) -> int:
    """Write a configuration for each data set of a trainer's file; returns the exit status."""
    trainer, path = args.trainer
    if trainer not in TRAINERS:
        near = did_you_mean(trainer, list(TRAINERS))
        raise ConfigError(
            f"--from {trainer!r}: no such trainer.{near} There are: {', '.join(TRAINERS)}"
        )
    example = _read(_chosen(examples, args.encoder or "wan"))
    found = [looked_at(one) for one in convert(trainer, path)]
    outputs = _numbered(args.output, len(found))
    for output in outputs:
        if output is not None and output.exists():
            raise ConfigError(f"{output} exists, and is left as it is. Give another path with -o.")
    texts = []
    for number, one in enumerate(found, 1):
        url = f"{trainer}-cache" + (f"-{number}" if len(found) > 1 else "")
        raw = {
            "corpus": one.corpus,
            "clips": one.clips,
            "encoder": example["encoder"],
            "cache": {"url": url},
        }
        validate(Config, raw, f"{path}, data set {number}")
        head = f"From {trainer}'s {Path(path).name}, data set {number} of {len(found)}."
        lost = [f"Not carried over: {line}" for line in one.lost]
        # A name of the trainer's file may hold ends of lines, behind which YAML would begin.
        comments = [f"# {printable(line)}" for line in (head, *lost)]
        texts.append("\n".join([*comments, "", yaml.safe_dump(raw, sort_keys=False, width=100)]))
    for one, output, text in zip(found, outputs, texts, strict=True):
        if output is None:
            print(text, end="")
            continue
        write_file(output, text.encode())
        print(f"{output}: {printable(one.corpus['source'])}")
        for line in one.lost:
            print(f"  not carried over: {printable(line)}")
    if outputs[0] is not None:
        print("Set cache.url and what the encoder needs. Then, to see the plan:")
        print(f"  latentcache precompute {shlex.quote(str(outputs[0]))} --dry-run")
    return OK


def _numbered(output: str, count: int) -> list[Path | None]:
    """Return the paths of so many files: config.yaml, or config-1.yaml and so on. None: to print it."""
    if output == "-":
        return [None] * count
    path = output_file(output)
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{n}{path.suffix}") for n in range(1, count + 1)]


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
