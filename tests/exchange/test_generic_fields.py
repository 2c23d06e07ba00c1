"""Fields in WebDataset, MDS and Parquet: all that a reader needs of them, and files of a bounded size."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import latentcache
from latentcache.core.fields import FieldArray
from latentcache.exchange import mds, tar
from latentcache.exchange.export import Options
from latentcache.exchange.layouts import get_layout
from latentcache.exchange.write_field import write_field
from tests.tools.exchange import export, make_cache, take_in
from tests.tools.fields import add, text_field
from tests.tools.forms import Sample, hf_samples, mds_samples, tensor, webdataset_samples

LENGTH = 24
CAPTIONS = ("a cat", "two dogs that run", None)
TEXTS = ("right", "left")


@pytest.fixture(scope="module", name="masked")
def masked_fixture(tmp_path_factory: pytest.TempPathFactory) -> latentcache.Cache:
    """Texts of which a model gets a mask, padded on either side; the last clip has none."""
    cache = make_cache(tmp_path_factory.mktemp("masked"), captions=CAPTIONS)
    for side in TEXTS:
        field = text_field(length=LENGTH, padding="mask", side=side, pooled=True)
        add(cache, **{side: field}, status=3)
    return latentcache.open_cache(cache.storage.url)


def of_webdataset(sample: Sample, name: str) -> tuple[str, Any, Any]:
    facts = sample["json"]
    return facts["key"], sample.get(f"{name}.pth"), facts.get(f"{name}_tokens")


def of_mds(sample: Sample, name: str) -> tuple[str, Any, Any]:
    *shape, dtype = sample[f"{name}.shape"] or [0, "uint8"]
    array = tensor(sample[name], shape, dtype) if sample[name] else None
    return sample["key"], array, sample.get(f"{name}_tokens")


def of_hf(sample: Sample, name: str) -> tuple[str, Any, Any]:
    shape, dtype = sample[f"{name}.shape"], sample[f"{name}.dtype"]
    array = tensor(sample[name], shape, dtype) if sample[name] else None
    return sample["key"], array, sample.get(f"{name}_tokens")


READERS: dict[str, tuple[Callable[[Path], list[Sample]], Any]] = {
    "webdataset": (webdataset_samples, of_webdataset),
    "mds": (mds_samples, of_mds),
    "hf": (hf_samples, of_hf),
}


def field_args(*names: str) -> list[str]:
    return [arg for name in names for arg in ("--field", name)]


@pytest.mark.parametrize("layout", READERS)
def test_a_mask_can_be_made_of_what_is_written(
    masked: latentcache.Cache, tmp_path: Path, layout: str
) -> None:
    out = tmp_path / "out"
    export(masked, out, layout, *field_args(*TEXTS))
    about = json.loads((out / "fields.json").read_text())
    read, of = READERS[layout]
    samples = read(out)
    assert len(samples) == len(masked)
    for sample in samples:
        for name in TEXTS:
            key, states, tokens = of(sample, name)
            clip = masked[key]
            if clip["caption"] is None:
                assert (states, tokens) == (None, None)
                continue
            assert tokens == clip[f"{name}_tokens"]
            assert torch.equal(states, clip[name])
            own = states[:tokens] if about[name]["side"] == "right" else states[LENGTH - tokens :]
            assert tokens == len(clip["caption"]) + 1
            assert own.any(dim=1).all()
            _, pooled, none = of(sample, f"{name}.pooled")
            assert torch.equal(pooled, clip[f"{name}.pooled"])
            assert none is None
    if layout == "hf":
        card = (out / "README.md").read_text()
        assert "`left`: bfloat16, padded on the left: the last `left_tokens` rows" in card
        assert "`left.pooled`: bfloat16\n" in card
    assert about["left"] == {"dtype": "bfloat16", "padding": "mask", "side": "left"}
    assert about["left.pooled"] == {"dtype": "bfloat16", "padding": None, "side": None}


@pytest.mark.parametrize("layout", READERS)
def test_an_import_does_not_mind_fields(
    masked: latentcache.Cache, tmp_path: Path, layout: str
) -> None:
    export(masked, tmp_path / "out", layout, *field_args(*TEXTS))
    again = take_in(layout, tmp_path / "out", tmp_path / "again", masked)
    assert set(again.keys()) == set(masked.keys())
    for key in masked.keys():  # noqa: SIM118 - a cache is no dict
        assert torch.equal(again.stored(key), masked.stored(key))


@pytest.mark.parametrize("layout", ["mds", "hf"])
@pytest.mark.parametrize("name", ["shape", "dtype"])
def test_an_array_with_the_name_of_another_s_column_is_refused(
    tmp_path: Path, layout: str, name: str
) -> None:
    cache = make_cache(tmp_path, names=("a.mp4",))
    own = FieldArray(shape=(2,), dtype="float32")
    padded = FieldArray(shape=(4, 2), dtype="float32", padding="mask")
    arrays = {"given": own, "a": padded, name: own}
    values = {key: torch.ones(array.shape) for key, array in arrays.items()}
    write_field(cache.storage.url, "given", lambda _: values, arrays=arrays)
    status = 0 if layout == "mds" and name == "dtype" else 2
    printed = export(cache, tmp_path / "out", layout, "--field", "given", status=status)
    assert status == 0 or f"would both be the column given.{name}" in printed


@pytest.mark.parametrize("layout", READERS)
def test_an_array_may_be_named_as_tokens_of_one_that_has_none(tmp_path: Path, layout: str) -> None:
    cache = make_cache(tmp_path, names=("a.mp4",))
    own = FieldArray(shape=(2,), dtype="float32")
    padded = FieldArray(shape=(4, 2), dtype="float32", padding="mask")
    arrays = {"given": own, "a_tokens": own, "a": own, "b": padded}
    values = {
        key: torch.full(array.shape, float(n)) for n, (key, array) in enumerate(arrays.items())
    }
    write_field(cache.storage.url, "given", lambda _: values, arrays=arrays)
    out = tmp_path / "out"
    export(cache, out, layout, "--field", "given")
    read, of = READERS[layout]
    for sample in read(out):
        for name in ("a", "a_tokens", "b"):
            _, found, tokens = of(sample, f"given.{name}")
            assert torch.equal(found, values[name])
            assert name == "a" or tokens == (4 if name == "b" else None)


@pytest.fixture(scope="module", name="mixed")
def mixed_fixture(tmp_path_factory: pytest.TempPathFactory) -> latentcache.Cache:
    """Pictures come first, and then videos whose samples of a field are five times as large."""
    cache = make_cache(tmp_path_factory.mktemp("mixed"), frames=(1, 5), clips=4)
    assert min(cache.buckets) == "1x32x48"
    array = FieldArray(shape=(0,), dtype="uint8", rule="pixels")

    def make(key: str) -> dict[str, Any]:
        frames, height, width = map(int, cache[key]["bucket"].split("x"))
        return {"pixels": torch.full((frames, height, width, 3), len(key) % 256)}

    write_field(cache.storage.url, "pixels", make, arrays=array)
    return latentcache.open_cache(cache.storage.url)


@pytest.mark.parametrize("layout", READERS)
def test_files_are_sized_by_the_bucket_of_each_of_their_clips(
    mixed: latentcache.Cache, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    limit = 200_000
    monkeypatch.setattr(tar, "FILE_BYTES", limit)
    what = get_layout(layout).export(mixed, Options(fields=("pixels",)))
    sizes = [len(file.make()) for file in what.files]
    assert max(sizes) <= what.file_bytes <= limit
    assert 4 < len(sizes) < len(mixed) / 4
    monkeypatch.setattr(tar, "FILE_BYTES", 1)
    what = get_layout(layout).export(mixed, Options(fields=("pixels",)))
    assert len(what.files) == len(mixed)
    assert what.file_bytes > 5 * 32 * 48 * 3


def test_mixed_buckets_come_back_from_several_files(
    mixed: latentcache.Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar, "FILE_BYTES", 200_000)
    export(mixed, tmp_path / "out", "mds", "--field", "pixels")
    assert len(list((tmp_path / "out").glob("*.mds"))) > 4
    for sample in mds_samples(tmp_path / "out"):
        key, frames, _ = of_mds(sample, "pixels")
        assert torch.equal(frames, mixed[key]["pixels"])
    again = take_in("mds", tmp_path / "out", tmp_path / "again", mixed)
    assert set(again.keys()) == set(mixed.keys())


def test_a_clip_that_offsets_of_mds_do_not_reach_is_refused(
    mixed: latentcache.Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mds.MAX_BYTES == 2**32 - 1
    monkeypatch.setattr(mds, "MAX_BYTES", 5 * 32 * 48 * 3)
    printed = export(mixed, tmp_path / "out", "mds", "--field", "pixels", status=2)
    assert "12 clips too large for a shard of MDS" in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", READERS)
def test_arrays_of_any_name_come_out_and_the_latents_back(tmp_path: Path, layout: str) -> None:
    """One is called as the sample's latents are, and one makes a longer name than USTAR has."""
    cache = make_cache(tmp_path)
    field, longest = "f" * 64, "a" * 64
    array = FieldArray(shape=(3,), dtype="float32")
    arrays = dict.fromkeys((field, longest, "latents"), array)
    values = {name: torch.full((3,), float(n)) for n, name in enumerate(arrays)}
    write_field(cache.storage.url, field, lambda _: values, arrays=arrays)
    out = tmp_path / "out"
    export(cache, out, layout, "--field", field)
    read, of = READERS[layout]
    samples = read(out)
    assert len(samples) == len(cache)
    for sample in samples:
        for name, value in values.items():
            _, found, _ = of(sample, field if name == field else f"{field}.{name}")
            assert torch.equal(found, value)
    again = take_in(layout, out, tmp_path / "again", cache)
    assert set(again.keys()) == set(cache.keys())
    for key in cache.keys():  # noqa: SIM118 - a cache is no dict
        assert torch.equal(again.stored(key), cache.stored(key))


def test_only_long_names_in_a_tar_file_need_more_than_ustar() -> None:
    data = tar.tar_bytes([("0.latents.pth", b"x"), ("a" * 100, b"y")])
    ustar = io.BytesIO()
    with tarfile.open(fileobj=ustar, mode="w", format=tarfile.USTAR_FORMAT) as file:
        for name in ("0.latents.pth", "a" * 100):
            info = tarfile.TarInfo(name)
            info.size = 1
            file.addfile(info, io.BytesIO(b"x" if name[0] == "0" else b"y"))
    assert data == ustar.getvalue()
    assert tar.tar_bytes([("a" * 101, b"")]) == tar.tar_bytes([("a" * 101, b"")])
