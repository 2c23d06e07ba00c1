"""A cache as a data set of the Hugging Face hub: where it goes, which of its files go, and its card."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable
from typing import Any

from latentcache.core.units import plural
from latentcache.errors import ConfigError
from latentcache.exchange.hf import CARD
from latentcache.format.paths import LEASE
from latentcache.reading.cache import Cache
from latentcache.redaction import redact
from latentcache.storage.filesystems import translated

_URL = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)/?")


def repo_of(url: str) -> str:
    """Return USER/NAME of hf://datasets/USER/NAME. Raises ConfigError for any other text."""
    match = _URL.fullmatch(url)
    if match is None:
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
    """Return the data set's README.md: what the cache holds, and how it is read."""
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


def upload(cache: Cache, repo: str, card: str, *, private: bool) -> str:
    """Push a cache and its card in one commit; returns the commit's address.

    Raises ConfigError without the package, a token or a local folder, StorageError if the hub refuses.
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
    files = files_of(file.path for file in cache.storage.files(""))
    added = [hub.CommitOperationAdd(path, str(folder / path)) for path in files]
    added.append(hub.CommitOperationAdd(CARD, card.encode()))
    with translated("push to", f"hf://datasets/{repo}", {"token": token}):
        api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        done = api.create_commit(
            repo,
            added,
            commit_message=f"{plural(len(cache), 'clip')} of latents",
            repo_type="dataset",
        )
    return str(done.commit_url)


def _hub() -> Any:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ConfigError("push needs a package. Run: pip install huggingface_hub")
    import huggingface_hub

    return huggingface_hub
