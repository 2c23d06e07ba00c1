"""The command lines of the jobs that encode."""

from __future__ import annotations

from .base import Parser


def precompute() -> Parser:
    """Return the command line of `latentcache precompute`."""
    parser = Parser(
        prog="latentcache precompute",
        description="Encode a corpus into a cache: plan, encode what is missing, publish the snapshot, "
        "say what to do next.",
    )
    parser.add_config()
    parser.add_argument("--dry-run", action="store_true", help="print the plan and touch nothing")
    parser.add_argument(
        "--prune", action="store_true", help="retire clips of sources that the corpus lacks"
    )
    parser.add_argument(
        "--check-content",
        action="store_true",
        help="open known sources too, whose size and time of change are as they were; note all new URLs",
    )
    parser.add_allow_failures()
    parser.add_lease()
    return parser


def estimate() -> Parser:
    """Return the command line of `latentcache estimate`."""
    parser = Parser(
        prog="latentcache estimate",
        description="Say what precompute would take: encode a few clips of every bucket, leave the cache "
        "alone, and scale.",
    )
    parser.add_config()
    parser.add_argument("--clips", type=int, default=32, help="clips of each bucket to encode (32)")
    parser.add_argument(
        "--sources", type=int, default=2000, help="probe so many at most, drawn at random (2000)"
    )
    parser.add_argument("--price", type=float, help="of a GPU (or, on CPUs, a worker) for an hour")
    parser.add_argument("--gpus", type=int, default=1, help="workers of the run, one a GPU (1)")
    parser.add_allow_failures()
    return parser


def resume() -> Parser:
    """Return the command line of `latentcache resume`."""
    parser = Parser(
        prog="latentcache resume",
        description="Finish a cache: encode the shards that are missing, and with --retry-failed the "
        "clips that failed.",
    )
    parser.add_cache("run.* settings, or ")
    parser.add_argument(
        "--retry-failed", action="store_true", help="encode failed clips again, too"
    )
    parser.add_argument(
        "--skip-changed", action="store_true", help="record clips of changed sources as failed"
    )
    parser.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="NAME",
        help="finish only this field, and leave latents and other fields as they are",
    )
    parser.add_allow_failures()
    parser.add_encoder()
    parser.add_lease()
    return parser


def add_field() -> Parser:
    """Return the command line of `latentcache add-field`."""
    parser = Parser(
        prog="latentcache add-field",
        description="Add a field to a cache, such as the states of a text encoder: a layer beside the "
        "latents, which stay. FIELD.yaml names fields as a configuration's section `fields` does. Run "
        "again, it finishes a field that was interrupted.",
    )
    parser.add_argument("cache", metavar="CACHE_URL")
    parser.add_argument("fields", metavar="FIELD.yaml")
    parser.add_argument(
        "--update",
        action="store_true",
        help="encode texts that have changed since the field was planned, too",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and write nothing")
    parser.add_overrides("run.* settings, or where things are here")
    parser.add_encoder()
    parser.add_lease()
    return parser


def drop_field() -> Parser:
    """Return the command line of `latentcache drop-field`."""
    parser = Parser(
        prog="latentcache drop-field",
        description="Remove a field from a cache: its folder, and nothing else. Readers that have it open "
        "cannot go on.",
    )
    parser.add_argument("cache", metavar="CACHE_URL")
    parser.add_argument("field", metavar="FIELD")
    parser.add_argument("--yes", action="store_true", help="remove it")
    parser.add_overrides("where things are here, such as cache.storage_options.profile=writer")
    parser.add_lease()
    return parser
