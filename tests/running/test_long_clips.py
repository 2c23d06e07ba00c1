"""Long clips: decoded and encoded in groups, to the same bits, within the memory of a short one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import yaml

import latentcache
from latentcache.config.files import validate
from latentcache.config.sections import Config
from latentcache.core.records import Bucket
from latentcache.encoders import resolve
from latentcache.encoders.streaming import encode_stream
from latentcache.running import long_clips
from tests.tools.caches import ROOT, make_config, make_corpus, run_inline
from tests.tools.tiny_models import save_wan
from tests.tools.videos import moving_pattern, write_video

pytestmark = pytest.mark.slow
#: Of the run, and of what is not done for clips in groups.
OF_THE_RUN = ["decode_s", "encode_s", "psnr"]

SMALLEST: dict[str, Any] = {
    "corpus": {"source": "/data"},
    "clips": {"frames": 17, "size": [480, 832]},
    "encoder": {"kind": "dct"},
    "cache": {"url": "/cache"},
}


def facts_of(cache: latentcache.Cache) -> list[dict[str, Any]]:
    table = cache.table().drop_columns(OF_THE_RUN).to_pylist()
    return sorted(table, key=lambda row: (str(row["bucket"]), row["key"]))


def test_groups_give_the_cache_that_whole_clips_give(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", 3)
    broken = bytearray((corpus / "v1.mp4").read_bytes())
    broken[len(broken) // 2 :] = bytes(len(broken) - len(broken) // 2)
    (corpus / "broken.mp4").write_bytes(broken)
    clips = {"frames": 9, "select": "uniform:2", "fps": 20}
    opened = []
    for name, long_bytes in (("whole", long_clips.LONG_BYTES), ("groups", 0)):
        url = tmp_path / name
        config = make_config(tmp_path, corpus, str(url), clips=clips)
        with (
            mock.patch.object(long_clips, "LONG_BYTES", long_bytes),
            mock.patch.object(long_clips, "PIECE_BYTES", 3 * 64 * 96 * 2),
            mock.patch(
                "latentcache.running.worker.decode_pieces", wraps=long_clips.decode_pieces
            ) as asked,
        ):
            status, printed = run_inline("precompute", config)
        assert status == 3, printed
        assert asked.called == (long_bytes == 0)
        opened.append(latentcache.open_cache(str(url)))
    whole, groups = opened
    assert facts_of(groups) == facts_of(whole)
    assert len(whole) > 3
    assert all(torch.equal(groups.stored(n), whole.stored(n)) for n in range(len(whole)))


def config_of(**sections: Any) -> Config:
    return validate(Config, {**SMALLEST, **sections}, "test")


def test_only_long_clips_of_encoders_that_stream_come_in_groups() -> None:
    module, config = resolve({"kind": "dct"})
    spec = module.describe(config, dtype="float32")
    dct = module.build(config, spec=spec, device=torch.device("cpu"))
    short, long = (Bucket(frames=n, height=480, width=832) for n in (81, 1441))
    whole = config_of()
    assert not long_clips.is_long(whole, dct, short)
    assert long_clips.is_long(whole, dct, long)
    assert long_clips.decoded_bytes(whole, dct, long) <= long_clips.PIECE_BYTES
    cannot = mock.Mock(spec=["encode", "spec"])
    assert not long_clips.is_long(whole, cannot, long)
    assert long_clips.decoded_bytes(whole, cannot, long) == 3 * 1441 * 480 * 832


@pytest.mark.parametrize(
    "sections",
    [
        {"encoder": {"kind": "dct", "batch": 2}},  # the recipe says that clips come together
        {"clips": {**SMALLEST["clips"], "sampling": "spread"}},  # a part would sample other frames
    ],
)
def test_what_a_part_cannot_be_is_taken_whole(sections: dict[str, Any]) -> None:
    module, config = resolve({"kind": "dct"})
    spec = module.describe(config, dtype="float32")
    dct = module.build(config, spec=spec, device=torch.device("cpu"))
    long = Bucket(frames=1441, height=480, width=832)
    assert not long_clips.is_long(config_of(**sections), dct, long)


@pytest.mark.long
def test_a_minute_in_groups_has_the_bits_of_the_whole(tmp_path: Path) -> None:
    folder = save_wan(tmp_path / "wan", base_dim=2)
    module, config = resolve(
        {"kind": "diffusers_video", "model": str(folder), "dtype": "float32", "store": "mean"}
    )
    spec = module.describe(config, dtype="float32")
    wan = module.build(config, spec=spec, device=torch.device("cpu"))
    pixels = torch.from_numpy(moving_pattern(1441, 16, 24))[None]
    groups = torch.split(pixels, 37, dim=1)
    assert torch.equal(encode_stream(wan, groups, (1441, 16, 24)), wan.encode(pixels))


PEAK = """
import json, resource, sys
from jobs import precompute
sys.argv = ["precompute", sys.argv[1]]
status = precompute.main()
print(json.dumps([status, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""


@pytest.mark.long
@pytest.mark.timeout(
    7200
)  # about 0.6 s of a core per frame, most of it in unfolding for convolutions
@pytest.mark.parametrize("size", [(240, 416), (480, 832)])
def test_a_long_clip_takes_the_memory_of_a_short_one(size: tuple[int, int], tmp_path: Path) -> None:
    # As few channels as its classes take: the time is that of memory, and memory for pixels is the same.
    model = save_wan(tmp_path / "wan", base_dim=2)
    peaks = {}
    for frames in (81, 1441):
        folder = tmp_path / str(frames)
        (folder / "corpus").mkdir(parents=True)
        still = np.broadcast_to(moving_pattern(1, *size), (frames, *size, 3))
        write_video(folder / "corpus" / "v.mp4", still)
        config = make_config(
            folder,
            folder / "corpus",
            str(folder / "cache"),
            clips={"frames": frames, "size": list(size), "select": "first"},
            quality={"every": 0},
        )
        data = yaml.safe_load(config.read_text())
        encoder = {"kind": "diffusers_video", "model": str(model), "dtype": "float32"}
        data["encoder"] = {**encoder, "store": "mean"}
        config.write_text(yaml.safe_dump(data))
        command = [sys.executable, "-c", PEAK, str(config)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        status, peaks[frames] = json.loads(done.stdout.splitlines()[-1])
        assert status == 0, done.stdout
        assert latentcache.open_cache(str(folder / "cache")).stored(0).shape[1] == frames // 4 + 1
    assert peaks[1441] < 1.2 * peaks[81]
