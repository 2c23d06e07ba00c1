"""FastVideo's files: read by its rules, restated here, and taken in again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import latentcache
from latentcache.core.spec import LatentSpec
from latentcache.exchange import tar
from latentcache.exchange.export import Options
from latentcache.exchange.layouts import get_layout
from tests.tools.encoders.hashed_text import states
from tests.tools.exchange import export, make_cache, run, spec_of, take_in
from tests.tools.fields import add, text_field


def read(root: Path) -> dict[str, dict[str, Any]]:
    """What FastVideo makes of rows: bytes as float32 whatever the type says, in the shape beside them."""
    found = {}
    for path in sorted(root.rglob("*.parquet")):
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            for row in file.read_row_group(group).to_pylist():
                for name in ("vae_latent", "text_embedding"):
                    array = np.frombuffer(row.pop(f"{name}_bytes"), np.float32)
                    row[name] = torch.from_numpy(array.copy()).view(row.pop(f"{name}_shape"))
                found[row["id"]] = row
    return found


@pytest.fixture(scope="module", name="out")
def out_fixture(wan: latentcache.Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fastvideo") / "out"
    printed = export(wan, out, "fastvideo", "--text", "umt5")
    assert f"--data-path {out} --num-latent-t 2" in printed
    return out


@pytest.mark.slow
def test_its_reader_gets_the_raw_mean_and_unpadded_states(
    wan: latentcache.Cache, out: Path
) -> None:
    found = read(out)
    for number in range(len(wan)):
        sample = wan[number]
        row = found.pop(sample["key"])
        mean = wan.stored(number)[: wan.spec.channels].float()
        assert torch.equal(row.pop("vae_latent"), mean)
        text = row.pop("text_embedding")
        assert torch.equal(
            text, torch.from_numpy(states(sample["caption"] or "", 24).copy()).bfloat16().float()
        )
        assert row == {
            "id": sample["key"],
            "vae_latent_dtype": "float32",
            "text_embedding_dtype": "float32",
            "file_name": sample["source"],
            "caption": sample["caption"] or "",
            "media_type": "video",
            "width": 48,
            "height": 32,
            "num_frames": 2,
            "duration_sec": (sample["end_s"] or 0.0) - sample["start_s"],
            "fps": 0.0,
        }
    assert not found


@pytest.mark.slow
def test_the_schema_is_its_own(out: Path) -> None:
    schema = pq.read_schema(next(out.rglob("*.parquet")))
    assert schema.names == [
        *("id", "vae_latent_bytes", "vae_latent_shape", "vae_latent_dtype"),
        *("text_embedding_bytes", "text_embedding_shape", "text_embedding_dtype"),
        *("file_name", "caption", "media_type", "width", "height", "num_frames"),
        *("duration_sec", "fps"),
    ]
    assert schema.field("vae_latent_shape").type.value_type == pa.int64()
    assert schema.field("vae_latent_bytes").type == pa.binary()


def test_a_round_trip_is_equal_bit_for_bit(
    wan: latentcache.Cache, out: Path, tmp_path: Path
) -> None:
    again = take_in("fastvideo", out, tmp_path / "again", wan, "--dtype", "bfloat16")
    assert set(again.keys()) == set(wan.keys())
    keys = wan.keys()
    for key in keys:
        assert torch.equal(again.stored(key), wan.stored(key)[: wan.spec.channels])
        assert (again[key]["caption"] or "") == (wan[key]["caption"] or "")


def test_several_buckets_are_refused_unless_one_is_named(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, sizes=((32, 48), (48, 32)))
    printed = export(cache, tmp_path / "out", "fastvideo", "--text", "x", status=2)
    assert "5x32x48, 5x48x32" in printed
    assert "--bucket 5x32x48" in printed
    wrong = export(
        cache, tmp_path / "out", "fastvideo", "--text", "x", "--bucket", "5x1x1", status=2
    )
    assert "no such bucket" in wrong


def test_a_file_of_another_schema_and_a_half_one_are_refused(
    wan: latentcache.Cache, tmp_path: Path
) -> None:
    source, like = tmp_path / "in", wan.storage.url
    source.mkdir()
    pq.write_table(pa.table({"id": ["a"]}), source / "x.parquet")
    printed = run("import", "fastvideo", source, tmp_path / "n", "--like", like, status=2)
    assert "it has no column vae_latent_bytes" in printed
    (source / "x.parquet").write_bytes(b"PAR1 and then nothing")
    printed = run("import", "fastvideo", source, tmp_path / "n", "--like", like, status=2)
    assert "is no whole Parquet file" in printed
    assert printed.count("\n") == 1


def test_files_are_sized_by_latents_and_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts of one to 2001 tokens, of which the longest takes more than the latents of all."""
    names = tuple(f"{n}.mp4" for n in range(6))
    captions = [*("a" * 2000, "b" * 2000, "c" * 2000), None, "e", "f"]
    cache = make_cache(tmp_path, names=names, captions=captions)
    add(cache, long=text_field(length=4096, missing="empty"))
    cache = latentcache.open_cache(cache.storage.url)
    monkeypatch.setattr(tar, "FILE_BYTES", 150_000)
    what = get_layout("fastvideo").export(cache, Options(text="long"))
    tables = [pq.read_table(pa.BufferReader(file.make())) for file in what.files]
    assert [table.num_rows for table in tables] == [1, 1, 4]
    assert max(table.nbytes for table in tables) <= what.file_bytes <= 150_000
    found = [key for table in tables for key in table["id"].to_pylist()]
    assert sorted(found) == sorted(cache.keys())


@pytest.mark.parametrize(
    "spec",
    [spec_of("DCT"), spec_of("AutoencoderKLMochi"), spec_of("Another")],
)
def test_latents_that_it_does_not_normalise_are_refused(spec: LatentSpec, tmp_path: Path) -> None:
    """`normalize_dit_input` of its training/training_utils knows hunyuan, wan and cosmos."""
    cache = make_cache(tmp_path, spec)
    printed = export(cache, tmp_path / "out", "fastvideo", "--text", "x", status=2)
    assert (
        f"the latents are those of {spec.model_class}, and an export for FastVideo is of" in printed
    )
    assert "export to webdataset, mds or hf" in printed
    assert not (tmp_path / "out").exists()
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "in" / "x.parquet")
    like = ("--like", cache.storage.url)
    printed = run("import", "fastvideo", tmp_path / "in", tmp_path / "n", *like, status=2)
    assert f"FastVideo's files of {spec.model_class} are not known" in printed


def test_cosmos_takes_other_latents_of_the_same_vae_and_that_is_said(
    wan: latentcache.Cache, tmp_path: Path
) -> None:
    """Its Cosmos25TrainingPipeline normalises nothing."""
    printed = export(wan, tmp_path / "out", "fastvideo", "--text", "umt5")
    assert "Cosmos 2.5, which has the VAE of Wan 2.1, takes them for normalised ones" in printed


def test_hunyuanvideo_is_trained_by_yaml_and_reads_two_texts(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, spec_of("AutoencoderKLHunyuanVideo"), captions=["a", "b", "c"])
    add(cache, llama=text_field(length=24))
    printed = export(cache, tmp_path / "out", "fastvideo", "--text", "llama")
    assert "takes a text's first state for the pooled one of CLIP" in printed
    stanza = yaml.safe_load(printed[printed.index("# FastVideo, YAML") :])
    data = {"data_path": str(tmp_path / "out"), "num_latent_t": 2}
    assert stanza == {"training": {"data": data}}
    row = read(tmp_path / "out")[cache.keys()[0]]
    assert torch.equal(row["vae_latent"], cache.stored(0)[: cache.spec.channels].float())


def test_ids_are_refused(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, spec_of(stored="ids"))
    assert "stores ids" in export(cache, tmp_path / "out", "fastvideo", "--text", "x", status=2)
