"""The command lines of the jobs. Nothing heavy is imported here: help and completion come at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .base import (
    BELOW,
    DEVICES,
    FORMATS,
    LATENT_DTYPES,
    LAYOUTS,
    OPTIONS,
    WATCH_INTERVAL_S,
    WRONG_INPUT,
    Parser,
)
from .exchanges import export, import_, push
from .helpers import completion, init, schema
from .readers import preview, report, stream, train_example
from .runs import add_field, drop_field, estimate, precompute, resume
from .upkeep import clean, compact, copy, merge, status, verify

#: The command line of each job, by the job's name.
PARSERS: Mapping[str, Callable[[], Parser]] = {
    "precompute": precompute,
    "estimate": estimate,
    "add-field": add_field,
    "drop-field": drop_field,
    "resume": resume,
    "status": status,
    "verify": verify,
    "compact": compact,
    "merge": merge,
    "copy": copy,
    "export": export,
    "import": import_,
    "push": push,
    "clean": clean,
    "stream": stream,
    "report": report,
    "preview": preview,
    "train-example": train_example,
    "init": init,
    "schema": schema,
    "completion": completion,
}

__all__ = [
    "BELOW", "DEVICES", "FORMATS", "LATENT_DTYPES", "LAYOUTS", "OPTIONS", "PARSERS", "WATCH_INTERVAL_S",
    "WRONG_INPUT", "Parser", "add_field", "clean", "compact", "completion", "copy", "drop_field",
    "estimate", "export", "import_", "init", "merge", "precompute", "preview", "push", "report", "resume",
    "schema", "status", "stream", "train_example", "verify",
]  # fmt: skip
