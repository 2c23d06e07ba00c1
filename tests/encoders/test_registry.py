from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from latentcache.encoders import resolve
from latentcache.errors import ConfigError
from tests.tools.tiny_models import save_wan


def test_kind_gives_its_module_and_its_validated_config() -> None:
    module, config = resolve({"kind": "dct"})
    assert module.__name__ == "latentcache.encoders.dct"
    assert config.model_dump() == {"kind": "dct", "store": "mean"}


def test_unknown_kind_names_the_nearest_and_all() -> None:
    with pytest.raises(ConfigError, match=r"'dtc'. Did you mean 'dct'\?.*dct, diffusers"):
        resolve({"kind": "dtc"})


def test_missing_kind_is_told() -> None:
    with pytest.raises(ConfigError, match=r"encoder.kind: required; one of: dct"):
        resolve({"store": "mean"})


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"stor: unknown key. Did you mean 'store'\?"):
        resolve({"kind": "dct", "stor": "mean"})


def test_what_changes_latents_has_no_default_for_diffusers() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve({"kind": "diffusers_video", "model": "there"})
    assert "dtype: required, but not given" in str(caught.value)
    assert "store: required, but not given" in str(caught.value)


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'diffusers.*' 'safetensors"):
        resolve({"kind": "diffusers_video"})


def test_a_module_elsewhere_is_an_encoder_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.py").write_text(
        "from typing import Literal\n"
        "from latentcache.encoders.dct import build, describe, identity\n"
        "from latentcache.config.base import Section\n"
        "class Config(Section):\n    kind: str\n    store: Literal['mean'] = 'mean'\n"
    )
    (tmp_path / "elsewhere" / "half.py").write_text("Config = None\ndescribe = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    module, config = resolve({"kind": "elsewhere.mine"})
    assert module.describe(config, dtype="bfloat16").channels == 16
    with pytest.raises(ConfigError, match="exposes no identity, build"):
        resolve({"kind": "elsewhere.half"})
    with pytest.raises(ConfigError, match=r"no module 'elsewhere\.other' to import"):
        resolve({"kind": "elsewhere.other"})


@pytest.mark.slow
def test_describing_does_not_import_diffusers(tmp_path: Path) -> None:
    save_wan(tmp_path)
    code = (
        "import sys\n"
        "from latentcache.encoders import resolve\n"
        f"raw = dict(kind='diffusers_video', model={str(tmp_path)!r})\n"
        "raw |= dict(dtype='float32', store='mean')\n"
        "module, config = resolve(raw)\n"
        "module.describe(config, dtype='bfloat16'), module.identity(config)\n"
        "assert 'diffusers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
