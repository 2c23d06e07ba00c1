"""The command lines of the jobs. Nothing heavy is imported here: help and completion come at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
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
        help="open known sources too, whose size and time of change are as they were",
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


def stream() -> Parser:
    """Return the command line of `latentcache stream`."""
    parser = Parser(
        prog="latentcache stream",
        description="Read a cache as a trainer would: samples/s, MB/s, and the time that a training step "
        "would wait.",
    )
    parser.add_cache()
    parser.add_argument("--batch-size", type=int, default=8, help="clips a batch (8)")
    parser.add_argument("--steps", type=int, help="stop after this many batches")
    parser.add_argument("--epochs", type=int, default=1, help="times over the whole cache (1)")
    parser.add_argument(
        "--threads", type=int, help="threads that read and decompress (4, of a remote cache 16)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-shuffle", action="store_true")
    parser.add_argument("--device", default="cpu", help="where batches go, such as cuda (cpu)")
    parser.add_argument("--no-check", action="store_true", help="leave out the CRC32C of clips")
    parser.add_argument(
        "--disk-cache", metavar="FOLDER", help="keep what is read of a remote cache on a local disk"
    )
    return parser


def report() -> Parser:
    """Return the command line of `latentcache report`."""
    parser = Parser(
        prog="latentcache report",
        description="Show a cache on one page: what it is, what is done and what failed, and what its "
        "latents decode to.",
    )
    parser.add_cache()
    parser.add_argument("--device", help=f"where the model decodes: {DEVICES}")
    parser.add_argument(
        "-o", "--output", default="report.html", metavar="FILE", help="the page (report.html)"
    )
    parser.add_argument("--clips", type=int, default=8, help="clips to decode and compare (8)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of clips (0)")
    parser.add_encoder()
    return parser


def preview() -> Parser:
    """Return the command line of `latentcache preview`."""
    parser = Parser(
        prog="latentcache preview",
        description="Write what cached clips decode to, beside their sources: clips as mp4, images as "
        "PNG.",
    )
    parser.add_argument("cache", metavar="CACHE_URL")
    parser.add_argument(
        "words",
        nargs="*",
        metavar="KEY | section.key=value",
        help="clips; without any, some are listed. Or where things are here, such as encoder.model=...",
    )
    parser.add_argument("--device", help=f"where the model decodes: {DEVICES}")
    parser.add_argument("-o", "--output", default="preview", metavar="DIR", help="folder (preview)")
    parser.add_argument("--sample", type=int, metavar="N", help="N clips of all buckets")
    parser.add_argument("--seed", type=int, default=0, help="of --sample (0)")
    parser.add_argument(
        "--grid", action="store_true", help="one file of all clips: grid.mp4, or grid.png of images"
    )
    parser.add_argument(
        "--source",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="beside its source (yes)",
    )
    parser.add_encoder()
    return parser


def train_example() -> Parser:
    """Return the command line of `latentcache train-example`."""
    parser = Parser(
        prog="latentcache train-example",
        description="Train a small diffusion transformer on a cache, by flow matching; goes on exactly "
        "where it was killed. With several processes: torchrun --nproc-per-node N -m "
        "latentcache.jobs.training.train_example CACHE_URL ...",
    )
    parser.add_cache()
    parser.add_argument("--steps", type=int, default=200, help="in all, those of before too (200)")
    parser.add_argument("--batch-size", type=int, default=4, help="clips a batch and process (4)")
    parser.add_argument(
        "--checkpoint-dir", default="checkpoints", metavar="DIR", help="folder (checkpoints)"
    )
    parser.add_argument("--checkpoint-every", type=int, default=50, metavar="STEPS", help="(50)")
    parser.add_argument("--log-every", type=int, default=10, metavar="STEPS", help="(10)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="(0.001)")
    parser.add_argument(
        "--caption-dropout", type=float, default=0.1, help="share of captions left out (0.1)"
    )
    parser.add_argument("--heads", type=int, default=4, help="of 24 channels each (4)")
    parser.add_argument("--depth", type=int, default=4, help="layers (4)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help=f"{DEVICES}; with torchrun auto and cuda mean a GPU each")
    return parser


def init() -> Parser:
    """Return the command line of `latentcache init`."""
    parser = Parser(
        prog="latentcache init",
        description="Write a configuration with every key explained. Without ENCODER, list them.",
    )
    parser.add_argument("encoder", nargs="?", metavar="ENCODER", help="such as wan or flux2")
    parser.add_argument(
        "-o", "--output", default="config.yaml", metavar="FILE", help="new file (config.yaml)"
    )
    parser.add_argument(
        "--from",
        dest="trainer",
        nargs=2,
        metavar=("TRAINER", "FILE"),
        help="take corpus and clips from a trainer's data set file: musubi or diffusion-pipe (TOML), "
        "finetrainers or simpletuner (JSON); the encoder is ENCODER's, or wan's",
    )
    return parser


def schema() -> Parser:
    """Return the command line of `latentcache schema`."""
    return Parser(
        prog="latentcache schema",
        description="Print the JSON schema of configurations, encoders included, for editors and checks.",
    )


def completion() -> Parser:
    """Return the command line of `latentcache completion`."""
    parser = Parser(
        prog="latentcache completion",
        description="Print what a shell needs to complete latentcache's command lines. For bash: "
        'eval "$(latentcache completion bash)" in ~/.bashrc; for fish: latentcache completion fish > '
        "~/.config/fish/completions/latentcache.fish; for zsh: eval it in ~/.zshrc, after compinit.",
    )
    parser.add_argument("shell", choices=["bash", "zsh", "fish"])
    return parser


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
