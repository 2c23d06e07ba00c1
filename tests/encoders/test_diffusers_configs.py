from __future__ import annotations

from pathlib import Path

import pytest

from latentcache.config.files import load_config
from latentcache.encoders import resolve
from tests.tools.tiny_models import save

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[2] / "configs"
#: The tiny model of each example's geometry; sizes that decide what is legal are the published ones.
EXAMPLES = {
    "wan": "wan",
    "qwenimage": "qwenimage",
    "cogvideox": "cogvideox",
    "hunyuan": "hunyuan",
    "hunyuan15": "hunyuan15",
    "ltx": "ltx",
    "mochi": "mochi",
    "allegro": "allegro",
    "easyanimate": "magvit",
    "cosmos": "cosmos",
    "kvae": "kvae",
    "svd": "svd",
    "vidtok": "vidtok",
    "sd": "kl",
    "flux2": "flux2",
    "dc": "dc",
    "amused": "vq",
}


def test_every_example_for_diffusers_is_tested() -> None:
    texts = {path.stem: path.read_text() for path in CONFIGS.glob("*.yaml")}
    assert {name for name, text in texts.items() if "kind: diffusers_" in text} == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_is_legal_for_its_model(name: str, tmp_path: Path) -> None:
    config = load_config(str(CONFIGS / f"{name}.yaml"))
    changes = {"sample_size": 320} if name == "allegro" else {}
    model = save(EXAMPLES[name], tmp_path / str(config.encoder.get("subfolder", "")), **changes)
    assert model.is_dir()
    module, section = resolve({**config.encoder, "model": str(tmp_path)})
    spec = module.describe(section, dtype="bfloat16")
    assert isinstance(config.clips.frames, int)
    assert config.clips.size is not None
    assert spec.latent_shape(config.clips.frames, *config.clips.size)
