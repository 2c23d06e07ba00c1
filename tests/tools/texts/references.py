"""What diffusers' own pipelines make of one caption, by family."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers as hf
from diffusers.pipelines import (
    cogvideo,
    cosmos,
    flux,
    flux2,
    hunyuan_video,
    hunyuan_video1_5,
    kandinsky5,
    ltx,
    ltx2,
    mochi,
    qwenimage,
    stable_diffusion_3,
    stable_diffusion_xl,
    wan,
)

from tests.tools.texts.checkpoints import PARTS, Parts, save


@dataclass(frozen=True)
class Padded:
    """An array [L, D] or [D] as a model takes it, and the mask [L] that it gets, if it gets one."""

    values: torch.Tensor
    mask: torch.Tensor | None = None


Made = Mapping[str, Padded]


@dataclass(frozen=True)
class Case:
    """A family's tiny checkpoint, settings, and its reference: (pipeline, caption) to arrays.

    config: of the pipeline. others: components that its constructor looks at, and that encode nothing.
    quick: how many captions the default run compares.
    """

    parts: str
    pipeline: Any
    make: Callable[..., Made]
    settings: Mapping[str, Any] = field(default_factory=dict)
    family: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, Any] = field(default_factory=dict)
    quick: int = 10

    @property
    def raw(self) -> dict[str, Any]:
        return {"family": self.family or self.parts, **self.settings}


def t5(length: int, *, mask: bool) -> Callable[[Any, str], Made]:
    def make(pipeline: Any, text: str) -> Made:
        states, *rest = pipeline.encode_prompt(
            text, do_classifier_free_guidance=False, max_sequence_length=length, device="cpu"
        )
        return {"states": Padded(states[0], rest[0][0].bool() if mask else None)}

    return make


def make_hunyuan(pipeline: Any, text: str) -> Made:
    states, pooled, mask = pipeline.encode_prompt(text, device="cpu")
    return {"states": Padded(states[0], mask[0].bool()), "pooled": Padded(pooled[0])}


def make_hunyuan15(pipeline: Any, text: str) -> Made:
    states, mask, glyphs, glyph_mask = pipeline.encode_prompt(text, device="cpu")
    return {
        "states": Padded(states[0], mask[0].bool()),
        "glyphs": Padded(glyphs[0], glyph_mask[0].bool()),
    }


def make_cosmos25(pipeline: Any, text: str) -> Made:
    states, _ = pipeline.encode_prompt(text, do_classifier_free_guidance=False, device="cpu")
    return {"states": Padded(states[0])}


def make_qwen_image(pipeline: Any, text: str) -> Made:
    states, mask = pipeline.encode_prompt(text, device="cpu")
    assert mask is None  # diffusers drops a mask that hides nothing
    return {"states": Padded(states[0], torch.ones(states.shape[1], dtype=torch.bool))}


def make_flux(pipeline: Any, text: str) -> Made:
    states, pooled, _ = pipeline.encode_prompt(text, device="cpu")
    return {"states": Padded(states[0]), "pooled": Padded(pooled[0])}


def make_sd3(pipeline: Any, text: str) -> Made:
    states, _, pooled, _ = pipeline.encode_prompt(
        text, None, None, device="cpu", do_classifier_free_guidance=False
    )
    return {"states": Padded(states[0]), "pooled": Padded(pooled[0])}


def make_sdxl(pipeline: Any, text: str) -> Made:
    states, _, pooled, _ = pipeline.encode_prompt(
        text, device="cpu", do_classifier_free_guidance=False
    )
    return {"states": Padded(states[0]), "pooled": Padded(pooled[0])}


def make_ltx2(pipeline: Any, text: str) -> Made:
    """Run the connectors, and take what they get: the feature extractor's output."""
    states, mask, *_ = pipeline.encode_prompt(text, do_classifier_free_guidance=False, device="cpu")
    got: dict[str, torch.Tensor] = {}
    hooks = [
        getattr(pipeline.connectors, f"{name}_connector").register_forward_pre_hook(
            lambda _, inputs, name=name: got.update({name: inputs[0]})
        )
        for name in ("video", "audio")
    ]
    pipeline.connectors(states, mask, padding_side=pipeline.tokenizer.padding_side)
    for hook in hooks:
        hook.remove()
    own = mask[0].bool()
    made = {"states": Padded(got["video"][0], own), "audio": Padded(got["audio"][0], own)}
    if not pipeline.connectors.config.per_modality_projections:
        assert torch.equal(got["video"], got["audio"])
        del made["audio"]
    return made


def make_flux2(pipeline: Any, text: str) -> Made:
    states, _ = pipeline.encode_prompt(text, device="cpu")
    return {"states": Padded(states[0])}


def make_kandinsky5(pipeline: Any, text: str) -> Made:
    states, pooled, lengths = pipeline.encode_prompt(text, device="cpu")
    own = torch.arange(states.shape[1]) < lengths[1]
    return {"states": Padded(states[0], own), "pooled": Padded(pooled[0])}


class Vae(torch.nn.Module):
    """What HunyuanVideo 1.5's constructor reads of a VAE."""

    temporal_compression_ratio = 4
    spatial_compression_ratio = 16
    config = SimpleNamespace(latent_channels=32)


class CosmosVae(torch.nn.Module):
    """What Cosmos 2.5's constructor reads of a VAE."""

    temperal_downsample = (False, True, True)
    config = SimpleNamespace(latents_mean=[0.0], latents_std=[1.0], z_dim=1)


CASES: Mapping[str, Case] = {
    "wan": Case("wan", wan.WanPipeline, t5(512, mask=False)),
    "wan_226": Case("wan", wan.WanPipeline, t5(226, mask=False), {"length": 226}, quick=4),
    "cogvideox": Case("cogvideox", cogvideo.CogVideoXPipeline, t5(226, mask=False)),
    "ltx": Case("ltx", ltx.LTXPipeline, t5(128, mask=True), {"pipeline": "LTXPipeline"}),
    "ltx_condition": Case(
        "ltx", ltx.LTXConditionPipeline, t5(256, mask=True), {"pipeline": "LTXConditionPipeline"}
    ),
    "mochi": Case("mochi", mochi.MochiPipeline, t5(256, mask=True)),
    "mochi_zeros": Case(
        "mochi",
        mochi.MochiPipeline,
        t5(256, mask=True),
        config={"force_zeros_for_empty_prompt": True},
        quick=4,
    ),
    "cosmos": Case(
        "cosmos",
        cosmos.CosmosTextToWorldPipeline,
        t5(512, mask=False),
        others={"safety_checker": torch.nn.Identity()},
    ),
    "cosmos2": Case(
        "cosmos",
        cosmos.Cosmos2TextToImagePipeline,
        t5(512, mask=False),
        others={"safety_checker": torch.nn.Identity()},
        quick=3,
    ),
    "cosmos25": Case(
        "cosmos25",
        cosmos.Cosmos2_5_PredictBasePipeline,
        make_cosmos25,
        others={"safety_checker": torch.nn.Identity(), "vae": CosmosVae()},
    ),
    "hunyuan_video": Case("hunyuan_video", hunyuan_video.HunyuanVideoPipeline, make_hunyuan),
    "hunyuan_video15": Case(
        "hunyuan_video15",
        hunyuan_video1_5.HunyuanVideo15Pipeline,
        make_hunyuan15,
        others={"vae": Vae()},
    ),
    "qwen_image": Case("qwen_image", qwenimage.QwenImagePipeline, make_qwen_image),
    "flux": Case("flux", flux.FluxPipeline, make_flux),
    "sd3": Case("sd3", stable_diffusion_3.StableDiffusion3Pipeline, make_sd3),
    "sdxl": Case("sdxl", stable_diffusion_xl.StableDiffusionXLPipeline, make_sdxl),
    "ltx2": Case("ltx2", ltx2.LTX2Pipeline, make_ltx2),
    "ltx23": Case("ltx23", ltx2.LTX2Pipeline, make_ltx2, family="ltx2"),
    "flux2": Case("flux2", flux2.Flux2Pipeline, make_flux2, quick=4),
    "kandinsky5": Case("kandinsky5", kandinsky5.Kandinsky5T2VPipeline, make_kandinsky5),
}


def saved(name: str, folder: Path) -> tuple[Path, Parts]:
    """Save a case's checkpoint; returns its folder and the components that were saved."""
    parts = PARTS[CASES[name].parts]()
    return save(folder, parts, **CASES[name].config), parts


def pipeline(case: Case, folder: Path, parts: Parts, dtype: torch.dtype) -> Any:
    """Return the pipeline of diffusers with models loaded from the folder, and no others."""
    loaded = {part: _loaded(folder / part, value, dtype) for part, value in parts.items()}
    takes = inspect.signature(case.pipeline.__init__).parameters
    optional = {
        part: None
        for part, parameter in takes.items()
        if part != "self" and part not in loaded and parameter.default is inspect.Parameter.empty
    }
    return case.pipeline(**{**optional, **loaded, **case.others, **case.config})


def _loaded(folder: Path, part: Any, dtype: torch.dtype) -> Any:
    if not isinstance(part, torch.nn.Module):
        return part
    key = "dtype" if isinstance(part, hf.PreTrainedModel) else "torch_dtype"
    return type(part).from_pretrained(folder, **{key: dtype}).eval()
