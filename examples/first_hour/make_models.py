"""Make small models and clips, so that the commands of docs/first-hour.md run without a download.

    python examples/first_hour/make_models.py

first-hour/wan has the files of Wan-AI/Wan2.1-T2V-1.3B-Diffusers and its classes, but few layers and
random weights. first-hour/clips has twenty videos of a disc that moves, and a caption beside each.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import av
import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import T5TokenizerFast, UMT5Config, UMT5EncoderModel

FRAMES, HEIGHT, WIDTH, RADIUS = 33, 64, 96, 12
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 220),
    "yellow": (230, 210, 50),
    "white": (240, 240, 240),
}
#: Direction -> rows and columns per frame.
MOVES = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}


def main() -> None:
    """Write both folders."""
    torch.manual_seed(0)
    folder = Path("first-hour")
    make_clips(folder / "clips")
    make_pipeline(folder / "wan")
    print(f"{len(COLOURS) * len(MOVES)} clips in {folder / 'clips'}, models in {folder / 'wan'}")


def make_clips(folder: Path) -> None:
    """Write a video and its caption for each colour and direction."""
    folder.mkdir(parents=True, exist_ok=True)
    for colour, move in itertools.product(COLOURS, MOVES):
        write_video(folder / f"{colour}-{move}.mp4", colour, move)
        caption = f"A {colour} disc moves {move} on a dark ground."
        (folder / f"{colour}-{move}.txt").write_text(caption)


def write_video(path: Path, colour: str, move: str) -> None:
    """Draw a disc that passes the middle of the picture in the middle of the video."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for frame in range(FRAMES):
            row, column = ((frame - FRAMES // 2) * step for step in MOVES[move])
            far = np.hypot(y - HEIGHT / 2 - row, x - WIDTH / 2 - column)
            disc = (RADIUS - far).clip(0, 1)[..., None]
            pixels = (20 + disc * (np.array(COLOURS[colour]) - 20)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def make_pipeline(folder: Path) -> None:
    """Save an autoencoder, a text encoder with its tokenizer, and a transformer."""
    tokenizer = make_tokenizer()
    parts = {
        "vae": AutoencoderKLWan(base_dim=8, dim_mult=[1, 1, 2, 2], num_res_blocks=1),
        "text_encoder": UMT5EncoderModel(
            UMT5Config(
                vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4
            )
        ),
        "tokenizer": tokenizer,
        "transformer": WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            text_dim=32,
            freq_dim=32,
            ffn_dim=64,
            num_layers=2,
        ),
    }
    index = {"_class_name": "WanPipeline"}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        library = "diffusers" if name in ("vae", "transformer") else "transformers"
        index[name] = [library, type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))


def make_tokenizer() -> T5TokenizerFast:
    """Return a tokenizer that spells texts with their letters."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.,"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in letters]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=512)


if __name__ == "__main__":
    main()
