"""What the jobs share: the command line, exit statuses, one message an error, and the user's files."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from latentcache.config.files import apply_overrides, load_stored_config
from latentcache.config.sections import Config
from latentcache.core.threads import JOINING_RAY
from latentcache.core.units import human_bytes as human_bytes
from latentcache.errors import ConfigError, LatentCacheError
from latentcache.format.manifest import Manifest
from latentcache.redaction import printable

from .interrupts import INTERRUPTED as INTERRUPTED
from .interrupts import watch_interrupts
from .output import OutputError, drop_unwritten, open_streams, safe_output
from .parsers import DEVICES as DEVICES
from .parsers import OPTIONS, Parser
from .parsers import WRONG_INPUT as WRONG_INPUT

OK, OTHER, SOME_FAILED = 0, 1, 3


def run_job(job: Callable[[argparse.Namespace], int], parser: Parser) -> int:
    """Run a job; what it raises becomes one message and an exit status."""
    open_streams()
    with safe_output():
        status = _run_job(job, parser)
        drop_unwritten()
        return leave(status)


def leave(status: int) -> int:
    """Return an exit status; or end with it at once, where a thread still joins a Ray cluster.

    Its native code would crash when the interpreter ends, and the process have another status.
    """
    if any(thread.name.startswith(JOINING_RAY) for thread in threading.enumerate()):
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(status)
    return status


def _run_job(job: Callable[[argparse.Namespace], int], parser: Parser) -> int:
    args = parser.parse_intermixed_args()
    signal.signal(signal.SIGTERM, _interrupt)
    interrupts = watch_interrupts()
    if args.verbose:
        _log_to_stderr()
    try:
        status = job(args)
        sys.stdout.flush()
        return OK if status == SOME_FAILED and getattr(args, "allow_failures", False) else status
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return OTHER
    except OutputError as error:
        with contextlib.suppress(OSError):
            print(f"The output cannot be written: {error.strerror}.", file=sys.stderr)
        return OTHER
    except LatentCacheError as error:
        print_error(error)
        return error.exit_status
    finally:
        interrupts.over()


def _log_to_stderr() -> None:
    """Show what latentcache logs in this process."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("latentcache")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def _interrupt(*_: object) -> NoReturn:
    """Make SIGTERM, as preemption sends it, the same as Ctrl-C."""
    raise KeyboardInterrupt


def print_error(error: LatentCacheError) -> None:
    """Print an error; names in it may hold what a terminal would obey."""
    lines = f"{type(error).__name__}: {error}".split("\n")
    print("\n".join(map(printable, lines)), file=sys.stderr)


def storage_options(
    overrides: Sequence[str], *, others: bool = False, fields: bool = False
) -> dict[str, Any]:
    """Return the options of the cache's storage among overrides.

    others: whether the job has a use for the other ones, and fields: for those of fields, too. Raises
    ConfigError.
    """
    section = _section(apply_overrides({}, overrides).get("cache", {}), "cache")
    if "url" in section:
        raise ConfigError("cache.url: the cache is the first argument; give its URL there.")
    for override in overrides:
        key = override.partition("=")[0]
        if not others and key != OPTIONS and not key.startswith(f"{OPTIONS}."):
            raise ConfigError(
                f"{key}: this job only reads what is stored, so nothing but {OPTIONS} can differ here. "
                "Leave it out."
            )
        if not fields and key.partition(".")[0] == "fields":
            raise ConfigError(f"{key}: this job takes no settings of fields. Leave it out.")
    return options_in(overrides, "cache", {})


def options_in(overrides: Sequence[str], name: str, default: dict[str, Any]) -> dict[str, Any]:
    """Return the storage options among overrides of a section, or `default`. Raises ConfigError."""
    section = _section(apply_overrides({}, overrides).get(name, {}), name)
    return _section(section.get("storage_options", default), f"{name}.storage_options")


def _section(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: should be a section with keys")
    return value


def stored_config(
    manifest: Manifest, url: str, overrides: Sequence[str], allowed_encoders: Sequence[str]
) -> Config:
    """Return the configuration of the cache at `url`, with what is elsewhere here. Raises ConfigError."""
    return load_stored_config(
        manifest.config,
        url=url,
        storage_options=storage_options(overrides, others=True),
        overrides=overrides,
        allowed_encoders=allowed_encoders,
    )


def copying_config(manifest: Manifest, url: str, overrides: Sequence[str]) -> Config:
    """Return `stored_config` for a job that imports no encoder, whose module is therefore no matter."""
    encoder = manifest.config.get("encoder")
    kinds = [str(encoder.get("kind"))] if isinstance(encoder, Mapping) else []
    return stored_config(manifest, url, overrides, kinds)


def is_override(word: str) -> bool:
    """Tell `section.key=value` from the key of a clip."""
    section, dot, rest = word.partition(".")
    return bool(dot) and "=" in rest and section in Config.model_fields


def made_folder(folder: Path, advice: str) -> Path:
    """Return a folder of the user's, made if need be. Raises ConfigError, ending in `advice`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {folder}: {error.strerror}. {advice}") from None
    return folder


def output_file(name: str) -> Path:
    """Return the path of a file of the user's that is to be written. Raises ConfigError for a folder's."""
    path = Path(name)
    if path.name in ("", "..") or os.path.isdir(path):  # noqa: PTH112 - is_dir raises for long names
        raise ConfigError(f"-o {name!r} is a folder. Give the name of a file.")
    return path


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
