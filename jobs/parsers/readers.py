"""The command lines of the jobs that read a cache."""

from __future__ import annotations

import argparse

from .base import DEVICES, Parser


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
