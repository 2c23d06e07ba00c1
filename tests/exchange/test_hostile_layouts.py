"""Folders of strangers: whatever they hold, an import takes what is sound or says in a sentence why not."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import latentcache
from latentcache.core.spec import IdSpec
from latentcache.errors import ConfigError, CorpusError
from latentcache.exchange.layouts import get_layout
from latentcache.exchange.records import Found
from latentcache.exchange.take_in import manifest_of, plan_import
from latentcache.format.manifest import read_cache_json
from latentcache.storage.folder import Storage
from tests.tools.caches import run_inline
from tests.tools.exchange import export, make_cache, run, spec_of, take_in

#: Options that layouts need of an export.
TEXT = dict.fromkeys(("musubi", "finetrainers", "fastvideo", "rcm"), ("--text", "umt5"))
LATENTS = "latents_2x4x6_bfloat16"
NUM_BYTES = 4 * 2 * 4 * 6 * 2
NAME = "one_00000-005_0048x0032_wan.safetensors"


@pytest.fixture(scope="module", name="ids")
def ids_fixture(tmp_path_factory: pytest.TempPathFactory) -> latentcache.Cache:
    folder = tmp_path_factory.mktemp("ids")
    return make_cache(folder, spec_of(stored="ids"), sizes=((32, 32),))


@pytest.fixture(scope="module", name="exported")
def exported_fixture(
    wan: latentcache.Cache, ids: latentcache.Cache, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, Path], Path]:
    """Makes a copy of an export, which is made once."""
    root = tmp_path_factory.mktemp("exports")

    def copy(layout: str, target: Path) -> Path:
        if not (root / layout).exists():
            export(ids if layout == "memmap" else wan, root / layout, layout, *TEXT.get(layout, ()))
        without_mark = shutil.ignore_patterns(".latentcache-export*")  # as those of strangers are
        return Path(shutil.copytree(root / layout, target, ignore=without_mark))

    return copy


def planned(layout: str, folder: Path, like: latentcache.Cache, dtype: str | None = None) -> Found:
    """All of an import that comes before the cache is made."""
    source, manifest = Storage(str(folder)), read_cache_json(like.storage)
    found = get_layout(layout).find(source, manifest.spec)
    manifest_of(manifest, found, str(folder / "new"), dtype=dtype)
    plan_import(found, source)
    return found


def safetensors(header: Any, num_bytes: int = NUM_BYTES) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(num_bytes)


def latents(**changes: Any) -> dict[str, Any]:
    return {"dtype": "BF16", "shape": [4, 2, 4, 6], "data_offsets": [0, NUM_BYTES], **changes}


@pytest.mark.parametrize(
    "data",
    [
        safetensors({LATENTS: latents(data_offsets=[0, float("inf")])}),
        safetensors({LATENTS: latents(data_offsets=None)}),
        safetensors({LATENTS: latents(shape=[-4, -2, 4, 6])}),
        safetensors({"latents_" + "9" * 5000 + "x4x6_bfloat16": latents()}),
        safetensors([1]),
        safetensors({"__metadata__": None}),
        safetensors(b"[" * 100_000),
        struct.pack("<Q", 1 << 63) + b"{}",
        b"",
    ],
)
def test_headers_that_make_no_sense_are_refused(
    data: bytes, wan: latentcache.Cache, tmp_path: Path
) -> None:
    (tmp_path / NAME).write_bytes(data)
    with pytest.raises(CorpusError, match=f"{NAME} .*Nothing was imported"):
        planned("musubi", tmp_path, wan)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (os.fsdecode(b"caf\xe9_00000-005_0048x0032_wan.safetensors"), "Rename the file"),
        ("one_" + "9" * 30 + "-005_0048x0032_wan.safetensors", "which no video has"),
        ("one_00000-000_0000x0000_wan.safetensors", "are not possible"),
        ("one_00000-" + "9" * 30 + "_0048x0032_wan.safetensors", "are not possible"),
    ],
)
def test_names_that_no_table_holds_are_refused(
    name: str, said: str, wan: latentcache.Cache, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(safetensors({LATENTS: latents()}))
    with pytest.raises((CorpusError, ConfigError), match=said):
        planned("musubi", tmp_path, wan)


def test_half_a_character_of_a_caption_is_replaced(wan: latentcache.Cache, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(safetensors({LATENTS: latents()}))
    text = safetensors({"__metadata__": {"caption1": "a \ud800 b"}}, 0)
    (tmp_path / "one_wan_te.safetensors").write_bytes(text)
    again = take_in("musubi", tmp_path, tmp_path.with_name("again"), wan)
    assert again["one#0"]["caption"] == "a ? b"


def test_links_are_read_as_a_trainer_reads_them(
    wan: latentcache.Cache, exported: Callable[[str, Path], Path], tmp_path: Path
) -> None:
    """They were left out without a word."""
    for layout in ("musubi", "mds", "simpletuner"):
        folder = exported(layout, tmp_path / layout)
        for path in [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]:
            moved = path.rename(tmp_path / f"{layout}-{path.name}")
            path.symlink_to(moved)
        assert len(planned(layout, folder, wan).records) == len(wan)


def test_hidden_files_are_none_of_the_trainer_s(wan: latentcache.Cache, tmp_path: Path) -> None:
    """macOS leaves such beside every file that it copies to another disk."""
    (tmp_path / NAME).write_bytes(safetensors({LATENTS: latents()}))
    (tmp_path / f"._{NAME}").write_bytes(b"\0\5\x16\7")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / NAME).write_bytes(b"")
    assert [record.path for record in planned("musubi", tmp_path, wan).records] == [NAME]


def test_a_link_that_leads_nowhere_is_named(wan: latentcache.Cache, tmp_path: Path) -> None:
    (tmp_path / NAME).symlink_to(tmp_path / "nowhere")
    with pytest.raises(CorpusError, match=f"{NAME} is not there any more"):
        planned("musubi", tmp_path, wan)


def tensors() -> Iterator[Any]:
    moments = torch.zeros(1, 8, 2, 4, 6)
    yield moments.to_sparse()
    yield moments.to("meta")
    yield moments.to(torch.complex64)
    yield torch._neg_view(moments)
    yield moments.long()
    yield moments > 0
    yield moments.to(torch.float8_e4m3fn)
    yield moments[:, :, :0]
    yield moments[..., :0]
    yield [1, 2]


@pytest.mark.parametrize("number", range(10))
def test_tensors_of_odd_kinds_are_refused(
    number: int, wan: latentcache.Cache, tmp_path: Path
) -> None:
    path = tmp_path / "finetrainers-precomputed-data" / "latent-0.pt"
    path.parent.mkdir()
    torch.save({"latents": list(tensors())[number]}, path)
    with pytest.raises((CorpusError, ConfigError)) as refused:
        planned("finetrainers", tmp_path, wan, "float32")
    assert "Nothing was imported" in str(refused.value)


def test_tensors_that_a_training_left_its_marks_on_are_taken(
    wan: latentcache.Cache, tmp_path: Path
) -> None:
    path = tmp_path / "in" / "finetrainers-precomputed-data" / "latent-0.pt"
    path.parent.mkdir(parents=True)
    moments = torch.randn(1, 8, 2, 4, 6)
    torch.save({"latents": torch.nn.Parameter(moments)}, path)
    again = take_in("finetrainers", tmp_path / "in", tmp_path / "again", wan)
    assert torch.equal(again.stored(0), moments[0])


def test_numbers_beyond_the_stored_type_fail_their_clip(
    wan: latentcache.Cache, tmp_path: Path
) -> None:
    """They became infinity, which only `verify` found."""
    folder = tmp_path / "in" / "finetrainers-precomputed-data"
    folder.mkdir(parents=True)
    for number, value in enumerate((1.0, 1e6)):
        torch.save({"latents": torch.full((1, 8, 2, 4, 6), value)}, folder / f"latent-{number}.pt")
    like = ("--like", wan.storage.url, "--dtype", "float16")
    printed = run("import", "finetrainers", folder.parent, tmp_path / "new", *like, status=3)
    assert "1 clips ok, 1 failed" in printed
    run("verify", tmp_path / "new")


@pytest.mark.parametrize(
    ("layout", "name", "changes"),
    [
        ("memmap", "metadata.json", {"s": float("inf")}),
        ("memmap", "metadata.json", {"num_images": 1e300}),
        ("memmap", "metadata.json", {"token_dtype": "f4,(1"}),
        ("memmap", "metadata.json", {"token_dtype": "float32"}),
        ("mds", "index.json", {"bytes": float("inf")}),
        ("mds", "index.json", {"samples": float("inf")}),
        ("mds", "index.json", {"samples": 1 << 60}),
        ("mds", "index.json", {"samples": 0}),
        ("mds", "index.json", {"samples": -1}),
        ("mds", "index.json", {"basename": ".."}),
        ("mds", "index.json", {"column_names": None}),
    ],
)
def test_facts_that_make_no_sense_are_refused(
    layout: str,
    name: str,
    changes: dict[str, Any],
    wan: latentcache.Cache,
    ids: latentcache.Cache,
    exported: Callable[[str, Path], Path],
    tmp_path: Path,
) -> None:
    folder = exported(layout, tmp_path / "in")
    facts = json.loads((folder / name).read_text())
    shard = facts["shards"][0] if layout == "mds" else facts
    (shard["raw_data"] if {"bytes", "basename"} & set(changes) else shard).update(changes)
    (folder / name).write_text(json.dumps(facts))
    with pytest.raises(CorpusError, match="Nothing was imported"):
        planned(layout, folder, ids if layout == "memmap" else wan)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("vae_latent_shape", [[4, 2, -4, 6]]),
        ("vae_latent_shape", [[4, 2, 4, None]]),
        ("vae_latent_shape", [[4.0, 2.0, 4.0, float("nan")]]),
        ("vae_latent_shape", [[4, 2, 1 << 62, 1 << 62]]),
        ("vae_latent_shape", ["4246"]),
        ("id", [None]),
        ("fps", ["x"]),
        ("fps", [float("nan")]),
        ("fps", [float("inf")]),
        ("fps", [-25.0]),
        ("fps", [1e300]),
    ],
)
def test_rows_that_make_no_sense_are_refused(
    column: str,
    values: list[Any],
    wan: latentcache.Cache,
    exported: Callable[[str, Path], Path],
    tmp_path: Path,
) -> None:
    folder = exported("fastvideo", tmp_path / "in")
    (path,) = folder.glob("*.parquet")
    table = pq.read_table(path)
    number = table.schema.get_field_index(column)
    table = table.set_column(number, column, pa.array(values * len(table)))
    pq.write_table(table, path)
    with pytest.raises((CorpusError, ConfigError), match="Nothing was imported"):
        planned("fastvideo", folder, wan)


def test_a_column_of_numbers_serves_as_text(
    wan: latentcache.Cache, exported: Callable[[str, Path], Path], tmp_path: Path
) -> None:
    folder = exported("fastvideo", tmp_path / "in")
    (path,) = folder.glob("*.parquet")
    table = pq.read_table(path)
    for column in ("id", "file_name", "caption"):
        number = table.schema.get_field_index(column)
        table = table.set_column(number, column, pa.array(range(1, 4)))
    pq.write_table(table, path)
    found = planned("fastvideo", folder, wan)
    assert [(r.key, r.source, r.caption) for r in found.records] == [
        (f"{n}",) * 3 for n in (1, 2, 3)
    ]


def test_ids_are_never_rounded_nor_beyond_the_codebook(
    ids: latentcache.Cache, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    export(ids, out, "hf")
    with pytest.raises(ConfigError, match="--dtype float32: ids are stored as they are"):
        planned("hf", out, ids, "float32")
    small = make_cache(tmp_path / "small", spec_of(stored="ids", ids=IdSpec(codebook_size=16)))
    args = ("import", "hf", out, tmp_path / "new", "--like", small.storage.url)
    assert "has ids beyond the 16" in run(*args, status=2)


def test_a_file_that_is_damaged_under_a_sound_header_is_named_with_what_to_do(
    wan: latentcache.Cache, exported: Callable[[str, Path], Path], tmp_path: Path
) -> None:
    """Its clips are planned, so that neither another file in its place nor none would do."""
    folder = exported("fastvideo", tmp_path / "in")
    (path,) = folder.glob("*.parquet")
    whole = path.read_bytes()
    column = pq.ParquetFile(path).metadata.row_group(1).column(1)
    assert column.path_in_schema == "vae_latent_bytes"
    middle = (column.dictionary_page_offset or column.data_page_offset) + NUM_BYTES
    path.write_bytes(whole[:middle] + bytes(9) + whole[middle + 9 :])
    args = ("import", "fastvideo", folder, tmp_path / "new", "--like", wan.storage.url)
    printed = run(*args, status=2)
    assert "is no whole Parquet file" in printed
    assert "What was imported stays. Once the file is whole, or removed" in printed
    path.write_bytes(whole)
    assert "1 file changed since this import was planned" in run(*args, status=2)
    run("import", "fastvideo", folder, tmp_path / "another", "--like", wan.storage.url)


def test_clips_that_came_later_are_counted(
    wan: latentcache.Cache, exported: Callable[[str, Path], Path], tmp_path: Path
) -> None:
    folder = exported("musubi", tmp_path / "in")
    *_, path = sorted(folder.glob("*_0048x0032_wan.safetensors"))
    later = path.rename(tmp_path / "later")
    args = ("import", "musubi", folder, tmp_path / "new", "--like", wan.storage.url)
    assert "came after" not in run(*args)
    later.rename(path)
    assert "1 clip of" in (printed := run(*args))
    assert "came after this import was planned" in printed


#: What is damaged of each layout, and how many bytes from its beginning.
FUZZED = [
    ("mds", "shard*.mds", 900),
    ("mds", "index.json", 1 << 20),
    ("hf", "data/*.parquet", 1 << 20),
    ("hf", "latent_spec.json", 1 << 20),
    ("fastvideo", "*.parquet", 1 << 20),
    ("rcm", "*.tar", 6000),
    ("webdataset", "*.tar", 6000),
    ("memmap", "metadata.json", 1 << 20),
    ("memmap", "segment_ids.bin", 1 << 20),
    ("musubi", "*_wan.safetensors", 300),
    ("finetrainers", "*/latent-0.pt", 1 << 20),
    ("simpletuner", "**/*.pt", 1 << 20),
]


@pytest.mark.long
@pytest.mark.parametrize(("layout", "pattern", "num_bytes"), FUZZED)
def test_a_damaged_file_ends_in_a_sentence(
    layout: str,
    pattern: str,
    num_bytes: int,
    wan: latentcache.Cache,
    ids: latentcache.Cache,
    exported: Callable[[str, Path], Path],
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(len(pattern))
    like = ids if layout == "memmap" else wan
    for number in range(60):
        folder = exported(layout, tmp_path / "in")
        path = min(folder.glob(pattern))
        path.write_bytes(_damaged(path.read_bytes(), num_bytes, rng))
        args = (layout, folder, tmp_path / f"{number}", "--like", like.storage.url)
        status, printed = run_inline("import", *args)
        assert status in (0, 1, 2, 3), printed
        assert "Traceback" not in printed
        assert (status in (0, 3)) == ("clips ok" in printed), printed
        shutil.rmtree(folder)


def _damaged(data: bytes, num_bytes: int, rng: np.random.Generator) -> bytes:
    found = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        at = int(rng.integers(min(len(found), num_bytes)))
        how = int(rng.integers(3))
        if how == 0:
            found[at] ^= 1 << int(rng.integers(8))
        else:
            found[at : at + 4] = rng.bytes(4) if how == 1 else b"\xff" * 4
    return bytes(found)
