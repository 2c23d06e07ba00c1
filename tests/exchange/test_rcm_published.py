"""rCM's own code on known latents: its data loader, and the step that decodes and encodes them again."""

from __future__ import annotations

import tarfile
from io import BytesIO
from pathlib import Path

import pytest
import torch
import yaml

import latentcache
from latentcache import FieldArray, LatentLoader, write_field
from latentcache.core.posterior import normalise, split, unnormalise
from tests.tools.caches import make_config, run_inline
from tests.tools.diffusers_tools import built, section
from tests.tools.exchange import export, run
from tests.tools.fields import add, text_field
from tests.tools.published import weights
from tests.tools.tiny_models import TINY
from tests.tools.trainers import Trainer
from tests.tools.trainers import run as batches_of

pytestmark = pytest.mark.slow
#: Latent frames that its step takes, and the pixel frames of these.
STATE_T, FRAMES = 2, 5


@pytest.fixture(scope="module", name="published")
def published_fixture() -> Trainer:
    return Trainer.load("rcm")


@pytest.fixture(scope="module", name="wan")
def wan_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The autoencoder that the stored numbers were made with: small, of weights by their names."""
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan(**TINY["wan"][1])
    state = vae.state_dict()
    vae.load_state_dict(weights(list(state), [tuple(tensor.shape) for tensor in state.values()]))
    folder = tmp_path_factory.mktemp("wan")
    vae.save_pretrained(str(folder))
    return folder


def states_of(published: Trainer, number: int) -> torch.Tensor:
    """umT5 states [512, D], zeros past the text."""
    states = torch.zeros(512, published["texts"].shape[-1], dtype=torch.bfloat16)
    states[: published["texts"].shape[1]] = published["texts"][number].to(torch.bfloat16)
    return states


def write_shards(published: Trainer, folder: Path) -> None:
    """Write the files that their loader was given."""
    folder.mkdir()
    for shard, numbers in enumerate((range(3), range(3, 5))):
        with tarfile.open(folder / f"shard_{shard:06d}.tar", "w") as tar:
            for number in numbers:
                for kind, value in (
                    ("latent.pt", published["latents"][number].to(torch.bfloat16).clone()),
                    ("embed.pt", states_of(published, number)),
                    ("prompt.txt", f"prompt {number} é"),
                ):
                    file = BytesIO()
                    file.write(value.encode()) if isinstance(value, str) else torch.save(
                        value, file
                    )
                    member = tarfile.TarInfo(f"{number:09d}.{kind}")
                    member.size = file.tell()
                    file.seek(0)
                    tar.addfile(member, file)


@pytest.fixture(scope="module", name="cache")
def cache_fixture(
    published: Trainer, wan: Path, tmp_path_factory: pytest.TempPathFactory
) -> latentcache.Cache:
    """Their files, taken in, and their text states as a field."""
    folder = tmp_path_factory.mktemp("taken")
    write_shards(published, folder / "theirs")
    like = make_config(
        folder, folder, str(folder / "unused"), clips={"frames": 9, "size": [16, 16]}
    )
    like.write_text(
        yaml.safe_dump({**yaml.safe_load(like.read_text()), "encoder": section(wan, "wan")})
    )
    url = folder / "cache"
    run("import", "rcm", folder / "theirs", url, "--like", like, "--dtype", "float32")
    array = FieldArray(name="", shape=(512, published["texts"].shape[-1]), dtype="bfloat16")
    write_field(
        str(url),
        "umt5",
        lambda key: {"umt5": states_of(published, int(key.partition("#")[0]))},
        arrays=array,
    )
    return latentcache.open_cache(str(url), expect={"provenance": "sampler"})


def number_of(prompt: str) -> int:
    return int(prompt.split()[1])


def test_its_loader_and_ours_give_the_same_of_its_files(
    published: Trainer, cache: latentcache.Cache
) -> None:
    theirs = {
        number: (latents, texts)
        for *of_batch, numbers in zip(
            published["batch_latents"],
            published["batch_texts"],
            published["batch_prompts"],
            strict=True,
        )
        for latents, texts, number in zip(*of_batch, numbers.tolist(), strict=True)
    }
    assert len(theirs) == 4  # of 5: a short batch is left out
    (batch,) = batches_of("rcm", cache.storage.url, "umt5", latent_frames=3)
    assert len(batch["prompts"]) == 4
    for prompt, latents, states in zip(
        batch["prompts"], batch["latents"], batch["t5_text_embeddings"], strict=True
    ):
        number = number_of(prompt)
        assert prompt == f"prompt {number} é"
        assert torch.equal(states, states_of(published, number))
        assert len(states) == published["num_tokens"].item()
        if number in theirs:
            assert torch.equal(latents.to(torch.bfloat16).float(), theirs[number][0])
            assert torch.equal(states[:8].float(), theirs[number][1])


def test_a_round_trip_in_floats_is_what_its_step_trains_on(published: Trainer, wan: Path) -> None:
    encoder = built(wan, "wan")
    cut = published["latents"][:, :, :STATE_T]
    latents = unnormalise(cut, encoder.spec.normaliser)
    means, _ = split(encoder.encode_values(encoder.decode_values(latents)))
    ours = normalise(means, encoder.spec.normaliser)
    torch.testing.assert_close(ours, published["state"], rtol=1e-4, atol=1e-4)
    through_uint8, _ = split(encoder.encode(encoder.decode(latents)))
    far = (normalise(through_uint8, encoder.spec.normaliser) - published["state"]).abs().max()
    assert far > 1e-3


@pytest.mark.long
def test_a_cache_of_the_round_trip_has_what_its_step_trains_on(
    published: Trainer, wan: Path, cache: latentcache.Cache, tmp_path: Path
) -> None:
    config = make_config(
        tmp_path,
        tmp_path,
        str(tmp_path / "child"),
        corpus={"source": f"cache://{cache.storage.url}"},
        clips={"frames": FRAMES, "size": [16, 16]},
        cache={"dtype": "float32"},
    )
    made = {**yaml.safe_load(config.read_text()), "encoder": section(wan, "wan", store="mean")}
    config.write_text(yaml.safe_dump(made))
    status, printed = run_inline("precompute", config)
    assert status == 0, printed
    child = latentcache.open_cache(str(tmp_path / "child"), expect={"provenance": "roundtrip"})
    for batch in LatentLoader(child):
        numbers = [number_of(prompt) for prompt in batch["caption"]]
        theirs = published["state"][numbers]
        torch.testing.assert_close(batch["latents"], theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.long
def test_its_files_are_what_we_write(
    published: Trainer, cache: latentcache.Cache, tmp_path: Path
) -> None:
    """Latents and prompts, in one file; states of ours are those of a text encoder."""
    add(cache, states=text_field(length=24))
    cache = latentcache.open_cache(cache.storage.url)
    export(cache, tmp_path / "out", "rcm", "--text", "states")
    with tarfile.open(tmp_path / "out" / "shard_000000.tar") as tar:
        for number, latents in enumerate(published["latents"]):
            file = tar.extractfile(f"{number:09d}.latent.pt")
            assert file is not None
            written = torch.load(BytesIO(file.read()), weights_only=True)
            assert written.dtype == torch.bfloat16
            assert torch.equal(written.float(), latents)
            prompt = tar.extractfile(f"{number:09d}.prompt.txt")
            assert prompt is not None
            assert prompt.read().decode() == f"prompt {number} é"
