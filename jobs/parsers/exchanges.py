"""The command lines of the jobs that exchange caches with other trainers, and with the hub."""

from __future__ import annotations

from .base import FORMATS, LATENT_DTYPES, LAYOUTS, Parser


def export() -> Parser:
    """Return the command line of `latentcache export`."""
    parser = Parser(
        prog="latentcache export",
        description="Write a cache in the form that another trainer reads, and print what its "
        "configuration needs. What could not be right is refused, with names, before anything is written. "
        "Every file is written whole; an export that was stopped goes on with the same command. "
        "Exit status: 0.",
    )
    parser.add_argument("cache", metavar="CACHE_URL")
    parser.add_argument(
        "output", metavar="OUT", help="an empty folder, or an export that was stopped"
    )
    parser.add_argument(
        "--to", required=True, choices=LAYOUTS, help="the layout; see docs/exchange.md"
    )
    parser.add_argument("--bucket", metavar="TxHxW", help="export only this bucket")
    parser.add_argument("--dtype", choices=LATENT_DTYPES, help="of the latents; the trainer's own")
    parser.add_argument("--text", metavar="FIELD", help="the field of text states to write, too")
    parser.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="FIELD",
        help="webdataset, mds, hf: a further field to write, such as first frames",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of samples of posteriors, and of shuffling (0)"
    )
    parser.add_argument("--model", help="cogvideo: the trainer's model_name (cogvideox-t2v)")
    parser.add_overrides(
        "cache.storage_options.* of the cache, and corpus.storage_options.* where those of OUT differ"
    )
    return parser


def import_() -> Parser:
    """Return the command line of `latentcache import`."""
    parser = Parser(
        prog="latentcache import",
        description="Make a cache of latents that another trainer's script has written. No code of its "
        "files is run. --like says which encoder made them. An import that was stopped goes on with the "
        "same command. Exit status: 0; 3 if some clips hold NaN or infinity.",
    )
    parser.add_argument("layout", choices=LAYOUTS, metavar="LAYOUT", help=", ".join(LAYOUTS))
    parser.add_argument("source", metavar="SRC", help="the trainer's folder")
    parser.add_argument("cache", metavar="CACHE_URL", help="the new cache")
    parser.add_argument(
        "--like",
        required=True,
        metavar="CACHE_URL | CONFIG.yaml",
        help="a cache, or a configuration, of the encoder that made the latents",
    )
    parser.add_argument("--dtype", choices=LATENT_DTYPES, help="stored; that of the files")
    parser.add_argument("--format", choices=FORMATS, help="of the new cache; that of --like")
    parser.add_allow_failures()
    parser.add_overrides(
        "cache.storage_options.* of the new cache, and corpus.storage_options.* where those of SRC differ"
    )
    parser.add_lease()
    return parser


def push() -> Parser:
    """Return the command line of `latentcache push`."""
    parser = Parser(
        prog="latentcache push",
        description="Push a cache in a local folder to the Hugging Face hub as a data set, with a card. "
        "Sources' names and captions become as public as the data set. Exit status: 0.",
    )
    parser.add_argument("cache", metavar="CACHE")
    parser.add_argument("target", metavar="hf://datasets/USER/NAME")
    parser.add_argument("--private", action="store_true", help="if the data set is not there yet")
    parser.add_argument("--license", metavar="ID", help="for the card, such as cc-by-4.0")
    parser.add_argument("--dry-run", action="store_true", help="show the card, and push nothing")
    return parser
