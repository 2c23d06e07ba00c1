"""SimpleTuner's files: read by its rules, restated here, and taken in again."""

from __future__ import annotations

import gzip
import hashlib
import io
from pathlib import Path

import pytest
import torch

import latentcache
from tests.tools.exchange import NAMES, export, make_cache, run, spec_of, take_in, unmark


def place_of(source: str, data_dir: str = "/data") -> str:
    """`VAECache.generate_vae_cache_filename` with hash_filenames, which its factory always sets."""
    path = Path(data_dir) / source
    name = hashlib.sha256(path.stem.encode()).hexdigest() + ".pt"
    return str(path.parent.relative_to(data_dir) / name)


def read(cache_dir: Path, source: str, data_dir: str = "/data") -> torch.Tensor:
    """What its VAE cache loads for a file below instance_data_dir: a bare tensor, gzipped or not."""
    data = (cache_dir / place_of(source, data_dir)).read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    assert isinstance(found, torch.Tensor)
    return found


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_its_reader_gets_means_normalised_in_the_vae_s_type(
    wan: latentcache.Cache, tmp_path: Path, dtype: str
) -> None:
    export(wan, tmp_path / "out", "simpletuner", "--dtype", dtype)
    kind, normaliser = getattr(torch, dtype), wan.spec.normaliser
    mean = torch.tensor(normaliser.shift).to(kind).view(-1, 1, 1, 1)
    std = torch.tensor([1 / scale for scale in normaliser.scale]).to(kind).view(-1, 1, 1, 1)
    for source in NAMES:
        latents = read(tmp_path / "out", source)
        raw = wan.stored(f"{source}#0")[: wan.spec.channels].to(kind)
        assert torch.equal(latents, (raw - mean) * (1.0 / std))


def test_a_round_trip_gives_what_was_stored(wan: latentcache.Cache, tmp_path: Path) -> None:
    export(wan, tmp_path / "out", "simpletuner", "--dtype", "float32")
    unmark(tmp_path / "out")
    path = tmp_path / "out" / place_of("four.mp4")
    path.write_bytes(gzip.compress(path.read_bytes()))
    again = take_in("simpletuner", tmp_path / "out", tmp_path / "again", wan)
    for source in NAMES:
        mean = wan.stored(f"{source}#0")[: wan.spec.channels].float()
        found = again.stored(f"{place_of(source).removesuffix('.pt')}#0")
        torch.testing.assert_close(found, mean, rtol=0, atol=1e-6)


def test_what_cannot_be_right_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    cache = make_cache(tmp_path, clips=2, names=("one.mp4",))
    assert "one clip of a source" in export(cache, out, "simpletuner", status=2)
    cache = make_cache(tmp_path / "abs", names=("/x/one.mp4", "s3://b/two.mp4"))
    assert "instance_data_dir" in export(cache, out, "simpletuner", status=2)
    cache = make_cache(tmp_path / "sample", spec_of(stored="sample"))
    assert "the cache stores sample" in export(cache, out, "simpletuner", status=2)
    assert not out.exists()


def test_other_tensors_and_bombs_are_refused(wan: latentcache.Cache, tmp_path: Path) -> None:
    source, like = tmp_path / "in", wan.storage.url
    source.mkdir()
    for data, said in [
        (torch.zeros(2, 2), "is no tensor [C, t, h, w]"),
        (torch.zeros(3, 2, 4, 6), "[4, 2, 4, 6]"),
        ({"a": 1}, "is no tensor [C, t, h, w]"),
    ]:
        torch.save(data, source / "a.pt")
        printed = run("import", "simpletuner", source, tmp_path / "n", "--like", like, status=2)
        assert said in printed
    (source / "a.pt").write_bytes(b"")
    printed = run("import", "simpletuner", source, tmp_path / "n", "--like", like, status=2)
    assert "may be half written" in printed


def test_clips_of_nan_fail_and_the_others_are_there(wan: latentcache.Cache, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    torch.save(torch.full((4, 2, 4, 6), float("nan")), source / "bad.pt")
    torch.save(torch.ones(4, 2, 4, 6), source / "good.pt")
    args = ("import", "simpletuner", source, tmp_path / "again", "--like", wan.storage.url)
    run(*args, status=3)
    again = latentcache.open_cache(str(tmp_path / "again"))
    assert again.keys() == ["good#0"]
