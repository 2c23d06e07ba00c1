"""File systems by URL: unknown schemes, packages that are not installed, folders of packages."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentcache.errors import ConfigError, StorageError
from latentcache.storage.filesystems import open_filesystem
from latentcache.storage.folder import Storage
from latentcache.storage.source_files import find_files, is_directory


def test_an_unknown_scheme_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown scheme 'memroy'. Did you mean 'memory'\?"):
        Storage("memroy://b/c")


def test_an_empty_url_is_not_the_root_of_the_disk() -> None:
    with pytest.raises(ConfigError, match="the URL of a folder is empty"):
        Storage("")


def test_a_chain_whose_archive_is_missing_is_said(tmp_path: Path) -> None:
    url = f"zip://a::{tmp_path}/nothing.zip"
    with pytest.raises(StorageError, match=rf"cannot open {url}: no such file"):
        Storage(url)


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"gs://b/c: .*Run: pip install '?gcsfs"):
        Storage("gs://b/c")


def test_a_missing_demo_package_names_the_command() -> None:
    with pytest.raises(ConfigError, match=r"'no_such' is not installed.*pip install"):
        open_filesystem("package://no_such/data")


def test_a_folder_of_an_installed_package_is_found() -> None:
    assert "__init__.py" in find_files("package://latentcache", max_depth=1)
    assert is_directory("package://latentcache/decoders")
