"""The command lines of the jobs that help to write a configuration or a command."""

from __future__ import annotations

from .base import Parser


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
