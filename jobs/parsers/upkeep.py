"""The command lines of the jobs that look after caches: status, verify, clean, compact, merge, copy."""

from __future__ import annotations

from .base import BELOW, DEVICES, FORMATS, WATCH_INTERVAL_S, Parser


def status() -> Parser:
    """Return the command line of `latentcache status`."""
    parser = Parser(
        prog="latentcache status",
        description="Say how far a cache is, from any machine, from what is on its storage: while its run "
        "goes on, or after. Exit status: 0 whatever the cache is like, if there is one; 130 "
        "where --watch was interrupted.",
    )
    parser.add_cache()
    parser.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=WATCH_INTERVAL_S,
        metavar="SECONDS",
        help=f"wait for the cache, and look again this often ({WATCH_INTERVAL_S:g}) until it is finished",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a look")
    return parser


def verify() -> Parser:
    """Return the command line of `latentcache verify`."""
    parser = Parser(
        prog="latentcache verify",
        description="Check every byte of a cache; --sample encodes some clips again, --repair plans "
        "damaged clips again. Exit status: 0 sound; 3 problems were found, even if --repair "
        "has planned the clips again: until `latentcache resume` has encoded them, their "
        "latents are missing.",
    )
    parser.add_cache("for --sample: run.* settings, or ")
    parser.add_argument(
        "--sample", type=int, default=0, metavar="N", help="encode N clips again and compare"
    )
    parser.add_argument("--seed", type=int, default=0, help="draws the sampled clips (0)")
    parser.add_argument("--device", help=f"where --sample encodes: {DEVICES}")
    parser.add_argument(
        "--repair", action="store_true", help="plan damaged clips again, for resume to encode them"
    )
    parser.add_encoder()
    parser.add_lease()
    return parser


def clean() -> Parser:
    """Return the command line of `latentcache clean`."""
    parser = Parser(
        prog="latentcache clean",
        description="List what a cache's folder holds beyond the cache; with --yes remove it, and nothing "
        "else. That is temporary files of interrupted writes and tables of no generation, "
        "older than an hour, and shards all of whose rows were retired more than --retired- "
        "days ago. Readers that opened the cache before cannot read those any more. Foreign "
        "files are listed and left. Exit status: 0.",
    )
    parser.add_cache()
    parser.add_argument(
        "--retired-days",
        type=float,
        default=30.0,
        metavar="N",
        help="shards go whose rows were all retired at least N days ago (30)",
    )
    parser.add_argument("--yes", action="store_true", help="remove what is listed as removable")
    parser.add_lease()
    return parser


def _add_derived(parser: Parser) -> None:
    """Add what both jobs take."""
    parser.add_argument(
        "--allow-unfinished",
        action="store_true",
        help="copy what is committed of caches that are not finished",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and stop")


def compact() -> Parser:
    """Return the command line of `latentcache compact`."""
    parser = Parser(
        prog="latentcache compact",
        description="Copy short shards, and shards with many retired rows, into full ones; nothing is "
        "decoded or encoded. The new shards hold the same compressed bytes. Old rows count until the "
        "shard that replaces them is there, so that readers see every clip once at any moment; a "
        "compaction that was stopped goes on with the same command, or with `latentcache resume`. "
        "Later `latentcache clean` removes the old shards. Exit status: 0.",
    )
    parser.add_cache()
    parser.add_argument(
        "--below",
        type=float,
        default=BELOW,
        metavar="PART",
        help=f"rewrite shards of which less than this part of a full one counts ({BELOW})",
    )
    parser.add_argument(
        "--drop-failed",
        action="store_true",
        help="retire clips that failed, instead of copying their rows",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and stop")
    parser.add_lease()
    return parser


def merge() -> Parser:
    """Return the command line of `latentcache merge`."""
    parser = Parser(
        prog="latentcache merge",
        description="Make one cache of several ones of the same recipe; nothing is decoded or encoded. "
        "Clips that several caches have, of sources with the same name and content, are taken once. The "
        "new cache knows the sources of all, so that `precompute` opens none of them again. A "
        "merge that was stopped goes on with the same command. Exit status: 0.",
    )
    parser.add_argument(
        "caches",
        nargs="+",
        metavar="CACHE_URL",
        help="the caches, in the order in which their clips shall come; then cache.storage_options.*, and "
        "corpus.storage_options.* where those of these caches differ from the new one's",
    )
    parser.add_argument("-o", "--output", required=True, metavar="URL", help="the new cache")
    parser.add_argument(
        "--prefer",
        choices=["first", "last"],
        help="whose clips to take of sources with the same name and other content",
    )
    _add_derived(parser)
    parser.add_lease()
    return parser


def copy() -> Parser:
    """Return the command line of `latentcache copy`."""
    parser = Parser(
        prog="latentcache copy",
        description="Copy a cache, or some of its clips, into Zarr or Parquet; nothing is decoded or "
        "encoded by a model. With --where or --keys only those ok clips are copied, so that two copies "
        "split a cache. Within a format compressed bytes are copied as they are; to another one "
        "latents are compressed again, bit for bit the same. A copy that was stopped goes on with "
        "the same command. Exit status: 0.",
    )
    parser.add_argument(
        "caches",
        nargs="+",
        metavar="SOURCE_URL TARGET_URL",
        help="the cache and the new one; then cache.storage_options.*, and corpus.storage_options.* where "
        "those of the source differ from the new one's",
    )
    parser.add_argument(
        "--where",
        metavar="CONDITION",
        help="copy clips of which this is true, such as \"end_s - start_s >= 2 and source like 'a%%'\"",
    )
    parser.add_argument(
        "--keys", metavar="FILE", help="copy clips whose keys are in it, one a line"
    )
    parser.add_argument("--format", choices=FORMATS, help="of the new cache; the source's")
    _add_derived(parser)
    parser.add_lease()
    return parser
