"""LTX-2's audio VAE: latents of a log-mel spectrogram, as its transformer takes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch

from latentcache.encoders.diffusers.loading import load_class, packages
from latentcache.encoders.sounds.encoder import BaseEncoder, SoundSettings
from latentcache.errors import ConfigError

COMPONENT = "audio_vae"
CLASS = "AutoencoderKLLTX2Audio"
#: The spectrogram's window; what is quieter than the floor is as loud as that.
N_FFT, FLOOR = 1024, 1e-5
#: Slaney's mel scale: even steps up to a frequency, in Hz, and even ratios from there on.
_STEP_HZ, _BREAK_HZ, _RATIO = 200.0 / 3, 1000.0, math.log(6.4) / 27.0
_NUMBERS = ("sample_rate", "in_channels", "mel_hop_length", "mel_bins", "latent_channels")


class Settings(SoundSettings):
    """`model`: a pipeline with `audio_vae/`, or that folder itself."""

    family: Literal["ltx2"]


class Encoder(BaseEncoder[Settings]):
    """Means [steps, 128], normalised: 8 channels of 16 bins each, 25 steps per second."""

    source = "diffusers AutoencoderKLLTX2Audio and LTX2Pipeline; the spectrogram: ltx_core AudioProcessor"

    def open(self) -> None:
        """Read the config."""
        self._files = self.settings.checkpoint(COMPONENT).component(COMPONENT)
        self._config = config = self._files.config()
        self.class_name = str(config.get("_class_name"))
        lacking = [name for name in _NUMBERS if not isinstance(config.get(name), int)]
        if self.class_name != CLASS or lacking:
            raise ConfigError(
                f"{COMPONENT}: {self._files.folder} holds a {self.class_name}"
                f"{' without ' + ', '.join(lacking) if lacking else ''}, and this encoder runs {CLASS}. "
                "Name the folder of LTX-2's audio VAE."
            )
        if config.get("causality_axis") != "height" or config.get("double_z") is not True:
            raise ConfigError(
                f"{COMPONENT}: this encoder knows models with causality_axis: height and double_z: true, "
                "as LTX-2's are"
            )
        self.rate, self.channels = config["sample_rate"], config["in_channels"]

    def num_steps(self, num_samples: int) -> int:
        """Return the spectrogram's frames, halved by each causal convolution of stride 2."""
        if num_samples <= N_FFT // 2:  # it is mirrored at both ends
            return 0
        frames = 1 + num_samples // int(self._config["mel_hop_length"])
        for _ in range(self._halvings):
            frames = (frames - 1) // 2 + 1
        return frames

    def width(self) -> int:
        """Return channels times bins of a latent step."""
        bins = int(self._config["mel_bins"]) >> self._halvings
        return int(self._config["latent_channels"]) * bins

    @property
    def _halvings(self) -> int:
        return len(self._config["ch_mult"]) - 1

    def facts(self) -> Mapping[str, object]:
        """Return the digests of the files, the spectrogram, and diffusers' version."""
        return {
            "weights_sha256": self._files.weights_sha256(),
            "config_sha256": self._files.config_sha256(),
            "spectrogram": {"n_fft": N_FFT, "mel": "slaney", "power": 1, "floor": FLOOR},
            "normalised": True,
            "packages": dict(packages()),
        }

    def load_weights(self, device: torch.device) -> Any:
        """Load the model by diffusers."""
        model = load_class(self._files.folder, CLASS, self.dtype, variant=self._files.variant)
        return model.to(device)

    def states_of(self, model: Any, samples_NC: torch.Tensor) -> torch.Tensor:
        """Encode the log-mel spectrogram; the mean is packed and normalised as LTX2Pipeline does."""
        config = self._config
        mel = log_mel(
            samples_NC.T.float().cpu(),
            rate=self.rate,
            hop=int(config["mel_hop_length"]),
            bins=int(config["mel_bins"]),
        )
        mean = model.encode(mel[None].to(model.device, self.dtype)).latent_dist.mode()
        packed = mean.transpose(1, 2).flatten(2, 3)[0]
        shift, scale = (
            getattr(model, f"latents_{name}").to(packed.dtype) for name in ("mean", "std")
        )
        normalised: torch.Tensor = (packed - shift) / scale
        return normalised


def log_mel(waves_CN: torch.Tensor, *, rate: int, hop: int, bins: int) -> torch.Tensor:
    """Return the log-mel spectrogram [C, frames, bins] of float32 waves.

    As torchaudio's MelSpectrogram with power 1 and Slaney's scale and norm, centred and mirrored.
    """
    window = torch.hann_window(N_FFT)
    spectrum = torch.stft(
        waves_CN, N_FFT, hop, window=window, center=True, pad_mode="reflect", return_complex=True
    )
    mel = spectrum.abs().transpose(-1, -2) @ mel_filters(rate, bins)
    return mel.clamp(min=FLOOR).log()


def mel_filters(rate: int, bins: int) -> torch.Tensor:
    """Return triangles over the spectrum, each of one area: [N_FFT / 2 + 1, bins]."""
    frequencies = torch.linspace(0, rate // 2, N_FFT // 2 + 1)
    ends = _hz(torch.linspace(0, _mel(rate / 2), bins + 2))
    widths = ends[1:] - ends[:-1]
    slopes = ends[None] - frequencies[:, None]
    rising, falling = -slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]
    triangles = torch.minimum(rising, falling).clamp(min=0)
    return triangles * (2.0 / (ends[2:] - ends[:-2]))[None]


def _mel(hz: float) -> float:
    if hz < _BREAK_HZ:
        return hz / _STEP_HZ
    return _BREAK_HZ / _STEP_HZ + math.log(hz / _BREAK_HZ) / _RATIO


def _hz(mels: torch.Tensor) -> torch.Tensor:
    bend = _BREAK_HZ / _STEP_HZ
    return torch.where(mels < bend, mels * _STEP_HZ, _BREAK_HZ * torch.exp(_RATIO * (mels - bend)))
