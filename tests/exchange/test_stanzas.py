"""What is printed for a trainer's configuration is read by its syntax, whatever the folder is called."""

from __future__ import annotations

import ast
import contextlib
import glob
import itertools
import json
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import latentcache
from latentcache.exchange import (
    cogvideo,
    fastvideo,
    finetrainers,
    hf,
    mds,
    memmap,
    musubi,
    rcm,
    simpletuner,
    webdataset,
)
from latentcache.exchange.quoting import hydra_value, quoted, without_braces
from tests.tools.exchange import export

FOLDERS = (
    "/plain/a-b_c.d",
    '/we"ird dir',
    "/it's",
    "/back\\slash\\",
    "/a{b,c}",
    "/tab\t$HOME`x`",
    "/ünï 日\x7f😀",
    "/two\nlines\x85and\u2028more",
)


def arguments(stanza: str) -> dict[str, str]:
    """Arguments of a shell's command, by what stands before each."""
    words = shlex.split(stanza, comments=True)
    return dict(itertools.pairwise(words))


@pytest.mark.parametrize("url", FOLDERS)
def test_toml_json_and_python_read_the_folder(url: str) -> None:
    toml = tomllib.loads(musubi._stanza((48, 32), [5], url))
    assert toml["datasets"][0]["cache_directory"] == url
    assert toml["datasets"][0]["video_directory"] == url
    lines = simpletuner._stanza(["5x32x48"], url).splitlines()
    found = json.loads("\n".join(line for line in lines if not line.startswith("//")))
    assert found["cache_dir_vae"] == url
    assert yaml.safe_load(fastvideo._yaml(2, url)) == {
        "training": {"data": {"data_path": url, "num_latent_t": 2}}
    }
    assert python_call(hf._stanza(url))[0] == url
    assert python_call(mds._stanza(url))[0] == url


def python_call(stanza: str) -> list[object]:
    """The texts that a line of Python gives to a function."""
    (statement,) = ast.parse(stanza).body
    calls = (node for node in ast.walk(statement) if isinstance(node, ast.Constant))
    return [node.value for node in calls if isinstance(node.value, str)]


@pytest.mark.parametrize("url", FOLDERS)
@pytest.mark.parametrize(
    ("option", "stanza"),
    [
        ("--data_root", lambda url: cogvideo._stanza("my model", "5x32x48", url)),
        ("--data-path", lambda url: fastvideo._arguments(2, url)),
        ("--precomputation_dir", lambda url: finetrainers._stanza(3, url)),
        ("--train_data_dir", lambda url: memmap._stanza({"s": 4, "vocab_size": 8}, url)),
    ],
)
def test_a_shell_reads_the_folder(option: str, stanza: Callable[[str], str], url: str) -> None:
    assert arguments(stanza(url))[option] == url


@pytest.mark.parametrize(
    ("url", "value"),
    [
        ("/plain", "/plain/shard_*.tar"),
        ("/a b", "'/a b/shard_*.tar'"),
        ("/it's", "'/it\\'s/shard_*.tar'"),
        ("/a\\b", "'/a\\b/shard_*.tar'"),
        ("/a\\'b", "'/a\\\\\\'b/shard_*.tar'"),
        ("/a,b=c", "'/a,b=c/shard_*.tar'"),
        ("/a[b]?", "'/a[[]b][?]/shard_*.tar'"),
    ],
)
def test_hydra_reads_the_pattern(url: str, value: str) -> None:
    """Tried with hydra-core 1.3: these values are parsed to the pattern."""
    words = shlex.split(rcm._stanza(2, url), comments=True)
    assert words == [f"dataloader_train.tar_path_pattern={value}", "model.config.state_t=2"]
    assert hydra_value("a b\\") == "'a b\\\\'"


def test_webdataset_expands_only_its_own_braces() -> None:
    """Tried with braceexpand 0.1.7."""
    stanza = webdataset._stanza("shard-{000000..000002}.tar", "/a{b,c}\\d")
    (urls,) = python_call(stanza)[:1]
    assert urls == "/a\\{b,c\\}\\\\d/shard-{000000..000002}.tar"
    assert without_braces("/plain") == "/plain"
    assert quoted("/plain") == '"/plain"'


def data_paths(path: str) -> list[tuple[str, int]]:
    """What FastVideo takes a `--data-path` for.

    As `_parse_data_path_specs` of its dataset/parquet_dataset_map_style.
    """
    found = []
    for part in filter(None, map(str.strip, path.split(","))):
        folder, colon, count = part.rpartition(":")
        found.append((folder.strip(), int(count)) if colon else (part, 1))
    return found


@pytest.mark.parametrize("name", ["a,b", "run:1", "wan2.1:480p", "blank "])
def test_a_folder_that_fastvideo_would_take_apart_is_refused(
    name: str, wan: latentcache.Cache, tmp_path: Path
) -> None:
    out = tmp_path / name
    with contextlib.suppress(ValueError):
        assert data_paths(str(out)) != [(str(out), 1)]
    printed = export(wan, out, "fastvideo", "--text", "umt5", status=2)
    assert "Export to a folder whose path has no comma, colon or blank at its end" in printed
    assert not out.exists()


@pytest.mark.parametrize("name", ["a b", "a'b", "a\\b", "a\nb", "日", 'a"b', "a[b]", "a{b}", "a=b"])
def test_other_folders_are_read_by_fastvideo(name: str, tmp_path: Path) -> None:
    folder = arguments(fastvideo._arguments(2, str(tmp_path / name)))["--data-path"]
    assert data_paths(folder) == [(str(tmp_path / name), 1)]


def test_a_url_is_copied_before_fastvideo_reads_it() -> None:
    stanza = fastvideo._arguments(2, "s3://bucket/out")
    assert arguments(stanza)["--data-path"] == "FOLDER"
    assert 'FOLDER: a local copy of "s3://bucket/out"' in stanza


@pytest.mark.parametrize("name", ["a[b]", "a*", "a?b"])
def test_a_folder_that_musubi_takes_for_a_pattern_is_refused(
    name: str, wan: latentcache.Cache, tmp_path: Path
) -> None:
    """Its `prepare_for_training` of dataset/image_video_dataset looks with `glob`, and escapes nothing."""
    out = tmp_path / name
    out.mkdir()
    (out / "x_wan.safetensors").touch()
    found = glob.glob(str(out / "*_wan.safetensors"))  # noqa: PTH207 - as it does
    assert bool(found) == (name != "a[b]")
    (out / "x_wan.safetensors").unlink()
    assert "Export to a folder whose path has none of them" in export(wan, out, "musubi", status=2)
    assert not any(out.iterdir())
