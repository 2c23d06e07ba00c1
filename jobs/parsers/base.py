"""What the command lines of all jobs have, and the values that some take."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

from latentcache import __version__
from latentcache.redaction import redact

WRONG_INPUT = 2
#: What `--device` takes, for its help.
DEVICES = "auto (cuda if there is a GPU, else cpu), cpu, cuda or cuda:N"
#: What a job that only reads stored bytes can be told of where they are.
OPTIONS = "cache.storage_options"
#: Shards of which fewer rows count than this part of a full one's are rewritten by `compact`.
BELOW = 0.75
#: The forms of shards (`latentcache.format.shards` imports what reads them).
FORMATS = ("zarr", "parquet")
#: Layouts of other trainers (`latentcache.exchange.layouts` says what each is).
LAYOUTS = (
    *("musubi", "finetrainers", "fastvideo", "simpletuner", "cogvideo", "rcm", "memmap"),
    *("webdataset", "mds", "hf"),
)
#: Data types of latents that layouts hold.
LATENT_DTYPES = ("bfloat16", "float16", "float32")
#: Seconds between two looks of `status --watch`.
WATCH_INTERVAL_S = 10.0


class Parser(argparse.ArgumentParser):
    """An argument parser that knows the exit statuses, and what every job takes."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_argument("-v", "--verbose", action="store_true", help="log details to stderr")
        self.add_argument("--version", action="version", version=f"latentcache {__version__}")

    def add_allow_failures(self) -> None:
        """Add the flag for schedulers that take any exit status but 0 for an error."""
        self.add_argument(
            "--allow-failures",
            action="store_true",
            help="exit 0, not 3, if the job finished and some clips or shards failed",
        )

    def add_config(self) -> None:
        """Add a configuration file, and what differs from it."""
        self.add_argument("config", metavar="CONFIG.yaml")
        self.add_overrides("change the config, such as run.workers=2 or cache.url=/data/cache")

    def add_cache(self, settings: str = "") -> None:
        """Add the cache as the next argument, and overrides: where things are, and `settings`."""
        self.add_argument("cache", metavar="CACHE_URL")
        self.add_overrides(f"{settings}where things are here, such as {OPTIONS}.profile=reader")

    def add_encoder(self) -> None:
        """Add what lets a job import an encoder that only the cache names."""
        self.add_argument(
            "--allow-encoder",
            action="append",
            default=[],
            metavar="MODULE",
            help="import this encoder of others if the cache names it; its code runs here",
        )

    def add_lease(self) -> None:
        """Add what a job takes that writes to a cache."""
        self.add_argument(
            "--take-lease",
            action="store_true",
            help="on storage where one run at a time may write: go on though another run has the lease, "
            "because it is known to be dead",
        )

    def add_overrides(self, what: str) -> None:
        """Add the overrides, in the one form that every job takes."""
        self.add_argument("overrides", nargs="*", metavar="section.key=value", help=what)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the command line, and how it is used."""
        print(f"{self.prog}: {redact(message)}\n{self.format_usage().strip()}", file=sys.stderr)
        sys.exit(WRONG_INPUT)
