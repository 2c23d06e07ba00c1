"""Print what a shell needs to complete latentcache's command lines: jobs, options, keys, files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import BaseModel

from latentcache.config.sections import Config

from . import parsers
from .__main__ import JOBS
from .cli import OK, run_job


@dataclass(frozen=True, kw_only=True)
class Words:
    """What may follow a job. options: each with its help; keys: `section.key=`, if it takes overrides."""

    options: Mapping[str, str]
    keys: tuple[str, ...]


def main() -> int:
    """Parse the command line and run."""
    return run_job(completion, parsers.completion())


def completion(args: argparse.Namespace) -> int:
    """Print the script of a shell; returns the exit status."""
    print(SHELLS[args.shell]({job: words_of(job) for job in JOBS}))
    return OK


def words_of(job: str) -> Words:
    """Return what a job's parser takes."""
    actions = parsers.PARSERS[job]()._actions if job in parsers.PARSERS else []
    options = {
        option: action.help or ""
        for action in actions
        for option in action.option_strings
        if option.startswith("--")
    }
    overridable = any("section.key=value" in str(action.metavar) for action in actions)
    return Words(options=options, keys=tuple(_keys(Config)) if overridable else ())


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield `section.key=` of every key of a configuration; those of encoders are their own."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _keys(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}="


def _bash(jobs: Mapping[str, Words]) -> str:
    cases = "\n".join(
        f"    {job}) words='{' '.join(words.options)}'; keys='{' '.join(words.keys)}' ;;"
        for job, words in jobs.items()
    )
    return f"""_latentcache() {{
  local cur=${{COMP_WORDS[COMP_CWORD]}} words='' keys=''
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W '{" ".join(jobs)} --help --version' -- "$cur"))
    return
  fi
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  case "$cur" in
    -*) COMPREPLY=($(compgen -W "$words" -- "$cur")) ;;
    *) COMPREPLY=($(compgen -W "$keys" -- "$cur") $(compgen -f -- "$cur")) ;;
  esac
  case "${{COMPREPLY[0]}}" in *=) compopt -o nospace 2> /dev/null ;; esac
}}
complete -o filenames -F _latentcache latentcache"""


def _zsh(jobs: Mapping[str, Words]) -> str:
    cases = "\n".join(
        f"    {job}) options=({' '.join(_described(words.options))}); keys=({_quoted(words.keys)}) ;;"
        for job, words in jobs.items()
    )
    return f"""#compdef latentcache
_latentcache() {{
  local -a jobs options keys
  if (( CURRENT == 2 )); then
    jobs=({" ".join(_described(JOBS))})
    _describe job jobs
    return
  fi
  case $words[2] in
{cases}
  esac
  if [[ $PREFIX == -* ]]; then
    _describe -o option options
  else
    compadd -S '' -a keys
    _files
  fi
}}
compdef _latentcache latentcache"""


def _described(words: Mapping[str, str]) -> Iterator[str]:
    for word, said in words.items():
        yield _quoted([f"{word}:{said}".replace(":", "\\:").replace("\\:", ":", 1)])


def _quoted(words: tuple[str, ...] | list[str]) -> str:
    return " ".join("'" + word.replace("'", "'\\''") + "'" for word in words)


def _fish(jobs: Mapping[str, Words]) -> str:
    lines = [
        f"complete -c latentcache -n __fish_use_subcommand -f -a {job} -d {_fished(said)}"
        for job, said in JOBS.items()
    ]
    for job, words in jobs.items():
        seen = f"complete -c latentcache -n '__fish_seen_subcommand_from {job}'"
        lines += [
            f"{seen} -l {option.removeprefix('--')} -d {_fished(said)}"
            for option, said in words.options.items()
        ]
        if words.keys:
            lines.append(f"{seen} -a '{' '.join(words.keys)}'")
    return "\n".join(lines)


def _fished(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


SHELLS = {"bash": _bash, "zsh": _zsh, "fish": _fish}

if __name__ == "__main__":
    sys.exit(main())
