"""Caches on the Hugging Face hub: names, files, the card, and what is refused before anything is sent."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path
from unittest import mock

import huggingface_hub
import pytest
import yaml

from jobs import push
from latentcache.errors import ConfigError
from latentcache.exchange.hub import card_of, files_of, repo_of, upload
from latentcache.inspecting.leftovers import is_cache_file
from latentcache.reading.cache import Cache, open_cache
from latentcache.storage.filesystems import open_filesystem
from tests.tools.fields import add, cache_of, text_field

URL = "hf://datasets/someone/some.latents-2"


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    planned = cache_of(tmp_path, ["one", "two", "three"])
    add(planned, umt5=text_field())
    return open_cache(planned.storage.url)


def test_the_data_set_of_a_url() -> None:
    assert repo_of(URL) == repo_of(f"{URL}/") == "someone/some.latents-2"


@pytest.mark.parametrize(
    "url",
    ["", "someone/x", "hf://someone/x", "hf://datasets/x", "hf://datasets/a/b/c", "s3://datasets/a/b",
     *(f"hf://datasets/a/{name}" for name in ("b--c", ".b", "b..c", "b.git", "-b", "b.", "ä", "b" * 97)),
     "hf://datasets/a/b@main", "hf://models/a/b", "hf://datasets//b", "hf://datasets/a/b\n"],
)  # fmt: skip
def test_another_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="Write hf://datasets/USER/NAME"):
        repo_of(url)


def test_logs_leases_and_unfinished_writes_stay_here() -> None:
    here = ["zarr.json", "logs/a.jsonl", "lease.json", "latents/.x.tmp", ".cache/x", "README.md",
            "cache.json", "fields/logs/field.json"]  # fmt: skip
    assert files_of(here) == ["cache.json", "fields/logs/field.json", "zarr.json"]


@pytest.mark.slow
def test_what_is_pushed_is_a_cache(cache: Cache, tmp_path: Path) -> None:
    for path in files_of(file.path for file in cache.storage.files("")):
        copy = tmp_path / "copy" / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(cache.storage.read(path))
    copied = open_cache(str(tmp_path / "copy"))
    assert copied.keys() == cache.keys()
    assert copied[0]["latents"].equal(cache[0]["latents"])
    assert copied[0]["umt5"].equal(cache[0]["umt5"])


def test_the_card_says_what_the_cache_holds(cache: Cache) -> None:
    card = card_of(cache, "someone/x", "cc-by-4.0")
    head = yaml.safe_load(card.split("---")[1])
    assert head == {"license": "cc-by-4.0", "viewer": False, "tags": ["latents", "latentcache"]}
    (bucket,) = cache.buckets.values()
    assert f"| `{bucket.name}` | {len(cache)} |" in card
    assert "`umt5`" in card
    assert '"hf://datasets/someone/x"' in card
    assert "license" not in card_of(cache, "someone/x")


def test_a_push_without_a_token_is_refused(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ConfigError, match="hf auth login"):
        upload(cache, "someone/x", "card", is_cache_file, private=True)


def test_a_push_without_the_package_names_it(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install huggingface_hub"):
        upload(cache, "someone/x", "card", is_cache_file, private=True)


def test_the_calls_are_those_of_the_installed_package() -> None:
    api = huggingface_hub.HfApi
    inspect.signature(api.create_repo).bind(
        None, "a/b", repo_type="dataset", private=True, exist_ok=True
    )
    inspect.signature(api.create_commit).bind(
        None, "a/b", [], commit_message="", repo_type="dataset"
    )


def test_a_dry_run_shows_the_card(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch.object(sys, "argv", ["push", cache.storage.url, URL, "--dry-run"]):
        assert push.main() == 0
    printed = capsys.readouterr().out
    assert card_of(cache, repo_of(URL)) in printed
    assert "nothing was pushed" in printed


def test_a_cache_on_the_hub_is_read_through_the_hubs_own_file_system() -> None:
    fs, path = open_filesystem(f"{URL}/cache.json")
    assert isinstance(fs, huggingface_hub.HfFileSystem)
    assert path == "datasets/someone/some.latents-2/cache.json"
