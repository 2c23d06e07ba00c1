"""Print the JSON schema of configurations, encoders included."""

from __future__ import annotations

import argparse
import json
import sys

from latentcache.encoders.schema import config_schema

from . import parsers
from .cli import OK, run_job


def main() -> int:
    """Parse the command line and run."""
    return run_job(schema, parsers.schema())


def schema(_: argparse.Namespace) -> int:
    """Print the schema; returns the exit status."""
    print(json.dumps(config_schema(), indent=2))
    return OK


if __name__ == "__main__":
    sys.exit(main())
