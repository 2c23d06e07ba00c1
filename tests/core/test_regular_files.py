"""Pipes, sockets, devices and folders where a file should be: refused, and never waited for."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.copy_cache import read_keys
from latentcache.config.files import load_config
from latentcache.config.trainers import convert
from latentcache.core.regular_files import read_regular
from latentcache.corpus.sources import read_corpus
from latentcache.encoders.diffusers.weights import locate
from latentcache.encoders.pretrained.files import Component
from latentcache.errors import LatentCacheError
from latentcache.format.manifest import read_cache_json
from latentcache.storage.folder import Storage
from tests.tools.caches import make_config

pytestmark = pytest.mark.timeout(20)


def bound(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


KINDS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": lambda path: bound(path),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": Path.mkdir,
}


def of_corpus(folder: Path, source: Path) -> None:
    config = load_config(str(make_config(folder, source, str(folder / "cache"))), [])
    read_corpus(config.corpus)


def of_pretrained(folder: Path) -> None:
    Component(name="t", folder=folder, class_name=None).config()


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "config": ("c.yaml", lambda path: load_config(str(path), [])),
    "trainer": ("set.toml", lambda path: convert("musubi", str(path))),
    "keys": ("keys.txt", read_keys),
    "corpus jsonl": ("t.jsonl", lambda path: of_corpus(path.parent, path)),
    "corpus json": ("t.json", lambda path: of_corpus(path.parent, path)),
    "corpus csv": ("t.csv", lambda path: of_corpus(path.parent, path)),
    "corpus parquet": ("t.parquet", lambda path: of_corpus(path.parent, path)),
    "corpus tar": ("t.tar", lambda path: of_corpus(path.parent, path)),
    "corpus yaml": ("videos.txt", lambda path: of_corpus(path.parent, path)),
    "cache.json": ("cache.json", lambda path: read_cache_json(Storage(str(path.parent)))),
    "model": ("config.json", lambda path: locate(str(path.parent), None, None)),
    "pretrained": (
        "config.json",
        lambda path: Component(name="t", folder=path.parent, class_name=None).config(),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_refused_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str, kind: str
) -> None:
    name, read = READERS[reader]
    monkeypatch.chdir(tmp_path)  # a socket's path may have 108 bytes
    KINDS[kind](Path(name))
    with pytest.raises(LatentCacheError):
        read(tmp_path / name)


def test_a_shell_s_pipe_is_read(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.write(write, b"a\n")
    os.close(write)
    assert read_regular(f"/dev/fd/{read}") == "a\n"
    os.close(read)
    (tmp_path / "a").write_text("é", encoding="utf-8")
    assert read_regular(tmp_path / "a") == "é"
