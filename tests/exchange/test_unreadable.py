"""Files that cannot be read at the moment: never called damaged, and nobody is told to remove one."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import latentcache
from latentcache.errors import CorpusError, StorageError
from latentcache.exchange.files import load_torch, read_header, read_part
from latentcache.exchange.mark import MARK
from latentcache.exchange.parquet import open_parquet, read_group
from latentcache.exchange.tar import Member, read_members, tensor_in
from latentcache.storage.folder import Storage
from tests.tools.exchange import export

TEXT = ("--text", "umt5")
#: A file of clips of each layout, and the options of its export.
LAYOUTS = {
    "musubi": ("*_wan.safetensors", ()),
    "finetrainers": ("*/latent-0.pt", TEXT),
    "fastvideo": ("*.parquet", TEXT),
    "simpletuner": ("**/*.pt", ()),
    "rcm": ("*.tar", TEXT),
    "webdataset": ("*.tar", ()),
    "mds": ("*.mds", ()),
    "hf": ("data/*.parquet", ()),
}
#: What reads a file of strangers.
READERS: dict[str, Callable[[Storage, str], object]] = {
    "torch": load_torch,
    "mapped": partial(load_torch, mapped=True),
    "safetensors": read_header,
    "part": lambda storage, path: read_part(storage, path, 0, 4),
    "tar": read_members,
    "member": lambda storage, path: tensor_in(
        storage, Member(path=path, name="x", offset=0, num_bytes=4)
    ),
    "parquet": lambda storage, path: open_parquet(storage, path, lambda: storage.read(path)),
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_that_may_not_be_read_stays(
    layout: str, wan: latentcache.Cache, tmp_path: Path
) -> None:
    pattern, options = LAYOUTS[layout]
    folder = tmp_path / "in"
    export(wan, folder, layout, *options)
    (folder / MARK).unlink()
    min(folder.glob(pattern)).chmod(0)
    obeying: list[str] = []
    if os.getuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root, and there is no setpriv to make it obey permissions")
        obeying = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    job = [sys.executable, "-m", "jobs", "import", layout, str(folder), str(tmp_path / "new")]
    done = subprocess.run(
        [*obeying, *job, "--like", wan.storage.url],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    printed = done.stdout + done.stderr
    assert done.returncode == 1, printed
    assert "Permission denied. Check the permissions" in printed
    assert "Remove" not in printed
    assert "no whole" not in printed
    assert "Traceback" not in printed


@contextmanager
def no_more_files() -> Iterator[None]:
    """Let this process open no other file."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("reader", READERS)
def test_a_machine_without_open_files_says_nothing_of_one(reader: str, tmp_path: Path) -> None:
    torch.save(torch.zeros(2), tmp_path / "a")
    storage = Storage(str(tmp_path))
    with no_more_files(), pytest.raises(StorageError, match=r"cannot read .*Too many open files"):
        READERS[reader](storage, "a")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("path", ["loop", "file/a", "x" * 300])
def test_a_path_that_cannot_be_followed_says_nothing_of_a_file(
    reader: str, path: str, tmp_path: Path
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot"):
        READERS[reader](Storage(str(tmp_path)), path)


def test_memory_that_is_not_mapped_says_nothing_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message is that of torch's MapAllocator."""
    torch.save(torch.zeros(2), tmp_path / "a")
    text = f"unable to mmap 1024 bytes from file <{tmp_path / 'a'}>: Cannot allocate memory (12)"

    def load(*_: Any, **__: Any) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(StorageError, match=os.strerror(errno.ENOMEM)):
        load_torch(Storage(str(tmp_path)), "a", mapped=True)


@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_is_gone_is_named_with_what_to_do(reader: str, tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("nowhere")
    with pytest.raises(CorpusError, match=r"a is not there any more.*put back what it leads to"):
        READERS[reader](Storage(str(tmp_path)), "a")


def test_damage_that_a_library_raises_as_an_error_of_reading_is_damage(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": list(range(9999))}), tmp_path / "a", compression="gzip")
    data = bytearray((tmp_path / "a").read_bytes())
    data[100:300] = bytes(200)
    (tmp_path / "a").write_bytes(data)
    storage = Storage(str(tmp_path))
    file = open_parquet(storage, "a", bytes)
    with pytest.raises(CorpusError, match=r"no whole Parquet file.*Remove the file"):
        read_group(storage, "a", file, 0, ["a"])
    (tmp_path / "b").write_bytes(b"\x1f\x8b\x07 no gzip")
    with pytest.raises(CorpusError, match=r"half written.*Remove the file"):
        load_torch(storage, "b")
