"""finetrainers' files: read by its rules, restated here, and taken in again."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import latentcache
from latentcache.core.spec import FrameRule
from latentcache.exchange.mark import MARK
from tests.exchange.conftest import CAPTIONS
from tests.tools.encoders.hashed_text import WIDTH
from tests.tools.exchange import COGVIDEOX, export, make_cache, run, spec_of, take_in
from tests.tools.fields import add, padded, text_field

FOLDER = "finetrainers-precomputed-data"


def read(
    root: Path, num_items: int, rank: int = 0, world: int = 1
) -> list[dict[str, torch.Tensor]]:
    """What rank r of w reads: numbered pairs from r * (N // w) on, merged."""
    share = num_items // world
    items = []
    for number in range(rank * share, (rank + 1) * share):
        pair: dict[str, torch.Tensor] = {}
        for kind in ("latent", "condition"):
            path = root / FOLDER / f"{kind}-{number}.pt"
            pair |= torch.load(path, map_location="cpu", weights_only=True)
        items.append(pair)
    return items


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.fixture(scope="module", name="out")
def out_fixture(wan: latentcache.Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finetrainers") / "out"
    printed = export(wan, out, "finetrainers", "--text", "umt5")
    assert f"--precomputation_items {len(wan)} --precomputation_dir {out}" in printed
    return out


def test_its_reader_gets_moments_and_padded_states(wan: latentcache.Cache, out: Path) -> None:
    items = read(out, len(wan))
    stored = {bits(wan.stored(n)): n for n in range(len(wan))}
    seen = set()
    for item in items:
        (moments,) = item["latents"]
        assert moments.dtype == torch.bfloat16
        number = stored[bits(moments)]
        seen.add(number)
        normaliser = wan.spec.normaliser
        assert torch.equal(item["latents_mean"], torch.tensor(normaliser.shift))
        assert torch.equal(item["latents_std"], torch.tensor(normaliser.scale))
        states = item["encoder_hidden_states"]
        assert states.shape == (1, 512, WIDTH)
        caption = wan[number]["caption"] or ""
        assert caption == (CAPTIONS[number] or "")
        wanted = torch.from_numpy(padded(caption, 512).astype("float32"))
        wanted[24:] = 0
        assert torch.equal(states[0].float(), wanted)
    assert seen == set(range(len(wan)))


def test_a_round_trip_is_equal_bit_for_bit(
    wan: latentcache.Cache, out: Path, tmp_path: Path
) -> None:
    again = take_in("finetrainers", out, tmp_path / "again", wan)
    assert again.spec.stored == "moments"
    found = {bits(again.stored(n)) for n in range(len(again))}
    assert found == {bits(wan.stored(n)) for n in range(len(wan))}


@pytest.mark.slow
def test_the_seed_chooses_the_order(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, clips=4)
    add(cache, umt5=text_field(length=24))
    orders = []
    for seed in (0, 1):
        export(cache, tmp_path / f"{seed}", "finetrainers", "--text", "umt5", "--seed", seed)
        orders.append([bits(i["latents"]) for i in read(tmp_path / f"{seed}", 12)])
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


@pytest.mark.slow
def test_cogvideox_has_frames_first_and_a_mask(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, spec_of(COGVIDEOX), names=("one.mp4",), captions=["a cat"])
    add(cache, t5=text_field(length=226))
    export(cache, tmp_path / "out", "finetrainers", "--text", "t5")
    (item,) = read(tmp_path / "out", 1)
    assert torch.equal(item["latents"][0].transpose(0, 1), cache.stored(0))
    assert item["prompt_attention_mask"].sum() == len("a cat") + 1
    assert item["encoder_hidden_states"].shape == (1, 226, WIDTH)
    again = take_in("finetrainers", tmp_path / "out", tmp_path / "again", cache)
    assert torch.equal(again.stored(0), cache.stored(0))


LTX = "AutoencoderKLLTXVideo"


def ltx_normalised(item: dict[str, Any]) -> torch.Tensor:
    """What its loss makes of the posterior's mean: as `LTXVideoModelSpecification._normalize_latents`."""
    mean, _ = item["latents"].chunk(2, dim=1)
    shift, std = (item[name].view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    normalised: torch.Tensor = (mean.float() - shift) / std
    return normalised


def test_ltx_has_sizes_a_mask_and_a_std_that_its_loss_divides_by(tmp_path: Path) -> None:
    spec = spec_of(LTX, stride=(8, 32, 32), frame_rule=FrameRule(multiple=8, remainders=(1,)))
    sizes = ((32, 64),)
    cache = make_cache(
        tmp_path, spec, names=("one.mp4",), captions=["a cat"], sizes=sizes, frames=9
    )
    add(cache, t5=text_field(length=128))
    printed = export(cache, tmp_path / "out", "finetrainers", "--text", "t5")
    assert "trains LTX with --batch_size 1 only" in printed
    (item,) = read(tmp_path / "out", 1)
    assert [item.pop(name) for name in ("num_frames", "height", "width")] == [2, 1, 2]
    assert torch.equal(item["latents"][0], cache.stored(0))
    wanted = cache.dataset(posterior="mode", normalise=True, dtype="float32")[0]["latents"]
    torch.testing.assert_close(ltx_normalised(item)[0], wanted)
    assert item["encoder_hidden_states"].shape == (1, 128, WIDTH)
    assert item["encoder_attention_mask"].shape == (1, 128)
    assert item["encoder_attention_mask"].sum() == len("a cat") + 1
    assert "prompt_attention_mask" not in item
    again = take_in("finetrainers", tmp_path / "out", tmp_path / "again", cache)
    assert torch.equal(again.stored(0), cache.stored(0))
    path = tmp_path / "out" / FOLDER / "latent-0.pt"
    (tmp_path / "out" / MARK).unlink()
    torch.save({**torch.load(path), "latents_std": torch.tensor(spec.normaliser.scale)}, path)
    like = ("--like", cache.storage.url)
    printed = run("import", "finetrainers", tmp_path / "out", tmp_path / "n", *like, status=2)
    assert f"has other means and scales than {LTX}" in printed


def test_hunyuanvideo_is_imported_and_why_it_is_not_exported_is_said(tmp_path: Path) -> None:
    """`HunyuanVideoModelSpecification` has two text encoders and no statistics in its files."""
    cache = make_cache(tmp_path, spec_of("AutoencoderKLHunyuanVideo"), names=("one.mp4",))
    printed = export(cache, tmp_path / "out", "finetrainers", "--text", "x", status=2)
    assert "LLaMA's states, their mask, and the pooled state of CLIP" in printed
    assert "Have finetrainers precompute its data, or export to musubi" in printed
    folder = tmp_path / "in" / FOLDER
    folder.mkdir(parents=True)
    torch.save({"latents": cache.stored(0)[None]}, folder / "latent-0.pt")
    again = take_in("finetrainers", tmp_path / "in", tmp_path / "again", cache)
    assert torch.equal(again.stored(0), cache.stored(0))


def test_what_cannot_be_right_is_refused(wan: latentcache.Cache, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "--text" in export(wan, out, "finetrainers", status=2)
    lacking = export(wan, out, "finetrainers", "--text", "lacking", status=2)
    assert "without a text: 1 clip ('four.mp4#0'). Add captions to the corpus" in lacking
    cache = make_cache(tmp_path, spec_of(stored="mean"))
    assert "the cache stores mean" in export(cache, out, "finetrainers", "--text", "x", status=2)
    assert not out.exists()


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/latentcache-was-here",)


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_file_that_would_run_code_is_refused(
    wan: latentcache.Cache, tmp_path: Path, protocol: int
) -> None:
    source = tmp_path / "in" / FOLDER
    source.mkdir(parents=True)
    torch.save({"latents": Evil()}, source / "latent-0.pt")
    (source / "latent-1.pt").write_bytes(pickle.dumps(Evil(), protocol))
    for name in ("latent-0.pt", "latent-1.pt"):
        like = wan.storage.url
        printed = run(
            "import", "finetrainers", source.parent, tmp_path / "n", "--like", like, status=2
        )
        assert f"{source / name} " in printed
        assert printed.count("\n") == 1
        (source / name).unlink()
    assert not Path("/tmp/latentcache-was-here").exists()
