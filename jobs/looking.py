"""What the jobs for people who look share: their arguments, and how they write files."""

from __future__ import annotations

from pathlib import Path

from latentcache.errors import ConfigError

from .cli import Parser


def add_cache_arguments(parser: Parser) -> None:
    """Add the cache, and what is elsewhere here than where the cache was made."""
    parser.add_cache()
    parser.add_argument("--device", help="where the model decodes (cuda if there is one, else cpu)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="where things are here, such as encoder.model=... or corpus.storage_options.key=...",
    )


def write_file(path: Path, data: bytes) -> None:
    """Write a file of the user's whole, through a temporary name. Raises ConfigError where it cannot."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror}. Give another path with -o."
        ) from None
