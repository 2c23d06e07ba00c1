"""A cache as a data set of the Hugging Face hub: where it goes, which of its files go, and its card."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from latentcache.core.units import plural
from latentcache.errors import CacheError, ConfigError
from latentcache.exchange.clips import named
from latentcache.exchange.hf import CARD
from latentcache.format.paths import CACHE_JSON, GENERATIONS, LEASE
from latentcache.reading.cache import Cache
from latentcache.redaction import redact
from latentcache.storage.filesystems import MESSAGE_CHARACTERS, translated
from latentcache.storage.folder import Storage

_URL = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)/?", re.ASCII)
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
#: Names that the hub does not take, or longer ones.
_NO_NAME, MAX_NAME = re.compile(r"--|\.\.|(^|/)[.-]|[.-](/|$)|\.git$"), 96


def repo_of(url: str) -> str:
    """Return USER/NAME of hf://datasets/USER/NAME. Raises ConfigError for any other text."""
    match = _URL.fullmatch(url)
    if match is None or _NO_NAME.search(match[1]) or len(match[1]) > MAX_NAME:
        raise ConfigError(
            f"{redact(url)!r} is no data set of the hub, so there is nowhere to push to. "
            "Write hf://datasets/USER/NAME; a cache is always the whole of a data set."
        )
    return match[1]


def files_of(paths: Iterable[str]) -> list[str]:
    """Return those of a cache's files that are pushed, in order: no logs, lease or unfinished write.

    A README.md is not, since the card takes its place.
    """
    return sorted(path for path in paths if path != CARD and not _is_of_a_run(path))


def _is_of_a_run(path: str) -> bool:
    parts = path.split("/")
    return parts[0] == "logs" or path == LEASE or any(part.startswith(".") for part in parts)


def card_of(cache: Cache, repo: str, licence: str | None = None) -> str:
    """Return the data set's README.md: what the cache holds, and how it is read. Raises ConfigError."""
    if licence is not None and not _LICENCE.fullmatch(licence):
        raise ConfigError(f"--license {licence!r} is no id of a licence, such as cc-by-4.0 or mit")
    spec = cache.spec
    rows = "".join(
        f"| `{bucket.name}` | {bucket.num_ok:,} | {'x'.join(map(str, bucket.shape))} |\n"
        for bucket in cache.buckets.values()
    )
    fields = ", ".join(f"`{name}`" for name in cache.field_names) or "none"
    head = f"license: {licence}\n" if licence else ""
    return (
        f"---\n{head}"
        "viewer: false\ntags:\n- latents\n- latentcache\n---\n\n"
        f"# Latents of {spec.model_class}\n\n"
        f"{plural(len(cache), 'clip')}, stored as {spec.stored} with {spec.channels} channels, not "
        "normalised. `cache.json` says which weights made them, and what they are normalised with.\n\n"
        "| bucket (frames x height x width) | clips | stored |\n"
        f"|---|---|---|\n{rows}\n"
        f"Further fields: {fields}.\n\n"
        "```python\nimport latentcache\n\n"
        f'loader = latentcache.LatentLoader("hf://datasets/{repo}", batch_size=8)\n```\n'
    )


def upload(
    cache: Cache, repo: str, card: str, is_cache_file: Callable[[str], bool], *, private: bool
) -> str:
    """Push a cache and its card in one commit; returns the commit's address.

    Files of the cache that are not here any more, such as those of a dropped field, go in the same commit.
    is_cache_file: tells by a path whether it is named as those of caches are; all others stay.

    Raises ConfigError without the package, a token or a local folder, CacheError if the data set holds
    another cache, or more of this one, StorageError if the hub refuses.
    """
    if not cache.storage.is_local:
        raise ConfigError(
            f"{redact(cache.storage.url)} is not a local folder, and files are pushed from one. "
            "Copy it first: latentcache copy CACHE_URL FOLDER"
        )
    hub = _hub()
    token = hub.get_token()
    if token is None:
        raise ConfigError(
            "there is no token of the hub, so nothing can be pushed. Run: hf auth login, or set HF_TOKEN"
        )
    api, folder = hub.HfApi(token=token), cache.storage.local_path()
    there, options = Storage(f"hf://datasets/{repo}", {"token": token}), {"token": token}
    with translated("push to", there.url, options):
        api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
    files = files_of(file.path for file in cache.storage.files(""))
    old = {file.path for file in there.files("") if is_cache_file(file.path)}
    _check_same(cache, there, old)
    operations = [hub.CommitOperationAdd(path, str(folder / path)) for path in files]
    operations.append(hub.CommitOperationAdd(CARD, card.encode()))
    operations += [hub.CommitOperationDelete(path) for path in sorted(old.difference(files))]
    message = f"{plural(len(cache), 'clip')} of latents"
    with translated("push to", there.url, options), _causes_said():
        done = api.create_commit(repo, operations, commit_message=message, repo_type="dataset")
    return str(done.commit_url)


def _check_same(cache: Cache, there: Storage, old: Collection[str]) -> None:
    """Raise CacheError if a data set holds another cache, or steps that this one has not taken."""
    if old and CACHE_JSON not in old:
        raise CacheError(
            f"{there.url} holds no cache, but files that are named as those of one: {named(sorted(old))}. "
            "They would be mixed with this cache. Nothing was pushed. Push to another data set, or remove "
            "them there first."
        )
    steps = sorted(path for path in old if path.startswith(f"{GENERATIONS}/"))
    for path in (CACHE_JSON, *steps[-1:]):
        if path not in old:
            continue
        if not cache.storage.exists(path) or cache.storage.read(path) != there.read(path):
            raise CacheError(
                f"{there.url} holds another cache, or steps of this one that are not here: its {path} "
                f"differs from that of {redact(cache.storage.url)}. The two would be mixed. Nothing was "
                "pushed. Push to another data set, or empty this one first."
            )


@contextlib.contextmanager
def _causes_said() -> Iterator[None]:
    """Have the error of a file's upload say why it failed, and not only of which file."""
    try:
        yield
    except RuntimeError as error:
        if error.__cause__ is not None:
            error.add_note(redact(" ".join(str(error.__cause__).split()))[:MESSAGE_CHARACTERS])
        raise


def _hub() -> Any:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ConfigError("push needs a package. Run: pip install huggingface_hub")
    import huggingface_hub

    hub: Any = huggingface_hub
    if not sys.stderr.isatty():  # where a bar per file is a page of lines
        hub.utils.disable_progress_bars()
    return hub
