"""What each discrete tokenizer does of its own, beside the contract and the published numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from latentcache.core import codebook
from latentcache.encoders import resolve
from latentcache.encoders.streaming import encode_stream
from latentcache.encoders.tokenizers import discrete, llamagen, open_magvit2, var, videogpt, vqgan
from latentcache.encoders.tokenizers.discrete import nearest_code
from latentcache.errors import ConfigError, EncoderError
from tests.tools.discrete_models import (
    save_gumbel,
    save_llamagen,
    save_open_magvit2,
    save_var,
    save_videogpt,
    save_vqgan,
)
from tests.tools.published import Published, pixels

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.mark.long
def test_a_long_clip_of_ids_in_groups_has_those_of_the_whole(tmp_path: Path) -> None:
    encoder = build(save_vqgan(tmp_path))
    generator = torch.Generator().manual_seed(0)
    clip = torch.randint(0, 256, (1, 35, 16, 16, 3), dtype=torch.uint8, generator=generator)
    for size in (1, 7, 16, 35):  # 16 frames are computed together, then 16, then 3
        groups = torch.split(clip, size, dim=1)
        assert torch.equal(encode_stream(encoder, groups, (35, 16, 16)), encoder.encode(clip))


def build(raw: dict[str, Any]) -> Any:
    module, config = resolve(raw)
    spec = module.describe(config, dtype="bfloat16")
    return module.build(config, spec=spec, device=CPU)


def describe(raw: dict[str, Any]) -> Any:
    module, config = resolve(raw)
    return module.describe(config, dtype="bfloat16")


def test_specs_say_what_the_ids_are(tmp_path: Path) -> None:
    spec = describe(save_videogpt(tmp_path))
    assert (spec.stride, spec.dtype, spec.exactness) == ((4, 4, 4), "uint8", "exact")
    assert spec.latent_shape(16, 128, 64) == (4, 32, 16)
    spec = describe(save_vqgan(tmp_path))
    assert (spec.stride, spec.ids.codebook_size) == ((1, 4, 4), 64)
    assert spec.latent_shape(5, 32, 24) == (5, 8, 6)
    spec = describe(save_var(tmp_path))
    assert (spec.ids.scales, spec.fixed_size) == ((1, 2, 3, 4), (64, 64))
    assert spec.latent_shape(1, 64, 64) == (30,)
    spec = describe(save_open_magvit2(tmp_path))
    assert (spec.ids.bit_order, spec.ids.codebook_size, spec.dtype) == (
        "lsb_first",
        1024,
        "uint16",
    )
    assert spec.latent_shape(17, 128, 128) == (5, 16, 16)


def test_levels_are_computed_as_published() -> None:
    x = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(videogpt.LEVELS, x.float() / 255.0 - 0.5)
    doubled = x.float().div(255)
    assert torch.equal(var.LEVELS, doubled.add(doubled).add_(-1))
    expected = (x.numpy() / 127.5 - 1.0).astype(np.float32)
    assert torch.equal(vqgan.LEVELS, torch.from_numpy(expected))
    assert torch.equal(open_magvit2.LEVELS, x.float().div(255).sub(0.5).div(0.5))


def test_nearest_code_is_the_first_of_equal_ones() -> None:
    codebook = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    vectors = torch.tensor([[0.9, 0.1], [0.1, 0.0], [-5.0, 2.9], [0.0, 2.0]])
    assert nearest_code(vectors, codebook).tolist() == [1, 0, 3, 3]


def test_ids_do_not_depend_on_how_many_positions_are_compared_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, codebook = (torch.randn(n, 8, generator=generator) for n in (300, 64))
    whole = nearest_code(vectors, codebook)
    assert torch.equal(whole, torch.cdist(vectors.double(), codebook.double()).argmin(1))
    monkeypatch.setattr("latentcache.encoders.tokenizers.discrete._ROWS_AT_ONCE", 7)
    assert torch.equal(nearest_code(vectors, codebook), whole)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(1, 2, 3, 4), r"decodes whole numbers \[B, t, h, w\], not torch.float32"),
        (torch.zeros(2, 3, 4, dtype=torch.long), r"not torch.int64 \[2, 3, 4\]"),
        (torch.full((1, 1, 2, 2), 64), "the codes 0 to 63, but these ids go from 64 to 64"),
        (torch.full((1, 1, 2, 2), -1), "Take special ids, such as masks, out before decoding"),
    ],
)
def test_what_are_not_ids_is_refused_by_decode(
    tmp_path: Path, ids: torch.Tensor, message: str
) -> None:
    with pytest.raises(EncoderError, match=message):
        build(save_vqgan(tmp_path)).decode(ids)


def test_multi_scale_ids_of_other_scales_are_refused(tmp_path: Path) -> None:
    encoder = build(save_var(tmp_path))
    with pytest.raises(EncoderError, match=r"whole numbers \[B, 30\], not torch.int64 \[1, 29\]"):
        encoder.decode(torch.zeros(1, 29, dtype=torch.long))


def test_ids_outside_the_codebook_are_never_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = build(save_vqgan(tmp_path))
    monkeypatch.setattr(encoder._tokenizer, "to_ids", lambda values: torch.full((1, 1, 2, 2), 64))
    with pytest.raises(EncoderError, match="its weights are of another model than the spec's"):
        encoder.encode(pixels(1, 1, 8, 8))


def test_weights_that_change_between_planning_and_building_are_refused(tmp_path: Path) -> None:
    module, config = resolve(save_vqgan(tmp_path))
    spec = module.describe(config, dtype="bfloat16")
    save_vqgan(tmp_path, **{"quantize.embedding.weight": torch.ones(64, 8)})
    with pytest.raises(EncoderError, match="latents of two models would be mixed"):
        module.build(config, spec=spec, device=CPU)


class TestVideoGPT:
    def test_encoding_leaves_the_codebook_and_the_statistics_alone(self, tmp_path: Path) -> None:
        encoder = build(save_videogpt(tmp_path))
        encoder.encode(pixels(2, 8, 16, 16))
        published = Published.load("videogpt").tensors
        for name, tensor in encoder._tokenizer.state_dict().items():
            assert torch.equal(tensor, published[name]), name

    def test_every_frame_reaches_every_id_frame(self, tmp_path: Path) -> None:
        encoder = build(save_videogpt(tmp_path))
        values = torch.zeros(1, 3, 16, 16, 16)
        changed = values.clone()
        changed[:, :, -1] = 0.5
        with torch.inference_mode():
            latents, others = (encoder._tokenizer.to_latents(x) for x in (values, changed))
        assert (latents != others).any(dim=(0, 1, 3, 4)).all()

    @pytest.mark.parametrize(
        ("contents", "stride", "message"),
        [
            ({"hyper_parameters": {}}, None, r"Set encoder.stride, such as \[4, 4, 4\]"),
            ({}, [2, 4, 4], r"is \[2, 4, 4\], but the checkpoint was trained with \[4, 4, 4\]"),
            ({"hyper_parameters": {}}, [2, 2, 8], "needs 3 downsampling convolutions, but"),
            ({"hyper_parameters": {}}, [4, 4, 3], "three powers of 2"),
            ({"hyper_parameters": {}}, [2, 2, 2], "at least one of them 4"),
        ],
    )
    def test_a_stride_that_cannot_be_is_refused(
        self, tmp_path: Path, contents: dict[str, Any], stride: list[int] | None, message: str
    ) -> None:
        raw = save_videogpt(tmp_path, **contents)
        with pytest.raises(ConfigError, match=message):
            describe({**raw, **({"stride": stride} if stride else {})})

    def test_a_stride_that_the_checkpoint_lacks_is_taken_from_the_config(
        self, tmp_path: Path
    ) -> None:
        raw = {**save_videogpt(tmp_path, hyper_parameters={}), "stride": [4, 2, 2]}
        assert describe(raw).stride == (4, 2, 2)
        assert build(raw).encode(pixels(1, 4, 8, 8)).shape == (1, 1, 4, 4)


class TestVQGAN:
    def test_frames_in_pieces_are_the_frames_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        encoder = build(save_vqgan(tmp_path))
        video = pixels(2, 5, 16, 16)
        ids = encoder.encode(video)
        monkeypatch.setattr(discrete, "FRAMES_AT_ONCE", 3)
        assert torch.equal(encoder.encode(video), ids)
        assert encoder.decode(ids).shape == video.shape

    @pytest.mark.parametrize("name", ["quantize.proj.weight", "quantize.used"])
    def test_quantisers_that_give_other_ids_are_refused(self, tmp_path: Path, name: str) -> None:
        raw = save_vqgan(tmp_path, **{name: torch.zeros(2)})
        with pytest.raises(ConfigError, match=f"has the tensor {name}: its quantiser"):
            describe(raw)

    def test_a_checkpoint_of_another_kind_is_refused(self, tmp_path: Path) -> None:
        raw = {**save_videogpt(tmp_path), "kind": "vqgan"}
        with pytest.raises(EncoderError, match=r"no tensor 'quant_conv.weight'|Check encoder.kind"):
            describe(raw)


class TestGumbelVQ:
    def test_the_recipe_says_that_the_likeliest_ids_are_taken(self, tmp_path: Path) -> None:
        module, config = resolve(save_gumbel(tmp_path))
        assert module.identity(config)["gumbel"] == "argmax"
        module, config = resolve(save_vqgan(tmp_path))
        assert "gumbel" not in module.identity(config)

    def test_ids_with_noise_are_taken_only_if_the_configuration_says_how(
        self, tmp_path: Path
    ) -> None:
        with pytest.raises(
            ConfigError, match=r"differ from call to call\. Set encoder\.gumbel to argmax"
        ):
            describe(save_gumbel(tmp_path, gumbel=None))
        with pytest.raises(ConfigError, match="it has a codebook and no logits"):
            describe({**save_vqgan(tmp_path), "gumbel": "argmax"})

    def test_its_quantiser_is_its_codebook(self, tmp_path: Path) -> None:
        _, config = resolve(save_gumbel(tmp_path))
        found = vqgan.quantiser(cast(vqgan.Config, config))
        expected = Published.load("gumbel").tensors["quantize.embed.weight"]
        assert found.keys() == {"weight"}
        assert torch.equal(found["weight"], expected)


class TestLlamaGen:
    def test_a_file_with_two_sets_of_weights_needs_a_choice(self, tmp_path: Path) -> None:
        published = Published.load("llamagen").tensors
        other = {name: tensor * 0.9 for name, tensor in published.items()}
        raw = save_llamagen(tmp_path, ema=other, optimizer={}, steps=3)
        with pytest.raises(ConfigError, match="holds ema and model, the average of the weights"):
            describe(raw)
        video = pixels(1, 1, 32, 24)
        averaged, last = (
            build({**raw, "weights": weights}).encode(video) for weights in ("averaged", "last")
        )
        assert not torch.equal(averaged, last)
        assert torch.equal(last, build(save_llamagen(tmp_path)).encode(video))

    def test_weights_that_a_file_lacks_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"weights is averaged, but vq_ds4.pt has no 'ema'"):
            describe({**save_llamagen(tmp_path), "weights": "averaged"})

    def test_a_vqgan_of_taming_transformers_is_refused(self, tmp_path: Path) -> None:
        raw = {**save_vqgan(tmp_path), "kind": "llamagen"}
        with pytest.raises(EncoderError, match=r"no tensor 'encoder.conv_blocks.0"):
            describe(raw)

    def test_its_quantiser_is_what_its_decoder_takes(self, tmp_path: Path) -> None:
        encoder = build(save_llamagen(tmp_path))
        _, config = resolve(save_llamagen(tmp_path))
        vectors = llamagen.quantiser(cast(llamagen.Config, config))["weight"]
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(len(vectors)))
        assert torch.equal(vectors, encoder._tokenizer.quantize.codes())


class TestVAR:
    def test_teacher_input_is_the_published_one(self, tmp_path: Path) -> None:
        encoder, published = build(save_var(tmp_path)), Published.load("var")
        fed = encoder.teacher_input(encoder.encode(published.pixels).to(torch.int16))
        assert list(fed.shape) == published.settings["teacher_shape"]
        assert [fed.sum().item(), fed.abs().sum().item()] == pytest.approx(
            published.settings["teacher_sum"], rel=1e-4
        )

    def test_each_scale_has_the_convolution_that_the_published_code_gives_it(self) -> None:
        """The third of ten scales is as near to the first as to the second, but for rounding."""
        phis = codebook.Phis(8, 4)
        chosen = [list(phis.qresi_ls).index(phis.of(i / 9)) for i in range(10)]
        assert chosen == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]

    def test_published_scales_give_680_ids_of_256_pixels(self, tmp_path: Path) -> None:
        scales = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16]
        spec = describe({**save_var(tmp_path), "scales": scales})
        assert spec.fixed_size == (256, 256)
        assert spec.latent_shape(1, 256, 256) == (680,)

    @pytest.mark.parametrize("scales", [[1, 3, 2], [1, 1, 2], [4]])
    def test_scales_that_do_not_ascend_are_refused(self, tmp_path: Path, scales: list[int]) -> None:
        with pytest.raises(ConfigError, match="scales: "):
            resolve({**save_var(tmp_path), "scales": scales})

    def test_identity_holds_the_scales(self, tmp_path: Path) -> None:
        raw = save_var(tmp_path)
        identities = []
        for scales in ([1, 2, 3, 4], [1, 2, 4]):
            module, config = resolve({**raw, "scales": scales})
            identities.append(module.identity(config))
        assert identities[0] != identities[1]


class TestOpenMagvit2:
    def test_averaged_weights_are_not_the_last_ones(self, tmp_path: Path) -> None:
        video = pixels(1, 5, 16, 24)
        averaged = build(save_open_magvit2(tmp_path)).encode(video)
        last = build(save_open_magvit2(tmp_path, weights="last")).encode(video)
        assert not torch.equal(averaged, last)
        module, config = resolve(save_open_magvit2(tmp_path, weights="last"))
        assert module.identity(config)["weights"] == "last"

    def test_a_file_without_averages_is_refused(self, tmp_path: Path) -> None:
        raw = save_open_magvit2(tmp_path, averaged=False)
        with pytest.raises(
            ConfigError, match=r"holds no average of .* Set encoder.weights to last"
        ):
            describe(raw)
        assert describe({**raw, "weights": "last"}).ids.codebook_size == 1024

    def test_the_tensors_show_which_tokenizer_of_images_it_is(self, tmp_path: Path) -> None:
        """The first release reads its ids in the other order, and has no adaptive norms."""
        orders = {}
        for name in ("open_magvit2_image", "open_magvit2_1xgpt"):
            spec = describe(save_open_magvit2(tmp_path, name=name))
            assert (spec.stride, spec.frame_independent) == ((1, 4, 4), True)
            orders[name] = spec.ids.bit_order
        assert orders == {
            "open_magvit2_image": "lsb_first",
            "open_magvit2_1xgpt": "msb_first",
        }
