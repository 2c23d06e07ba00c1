"""A file that refers to others is refused before any of them is opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentcache.decoders.streams import open_video
from latentcache.errors import ClipError

HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nother.ts\n#EXT-X-ENDLIST\n"
PLAYLISTS = {
    "concat": "ffconcat version 1.0\nfile 'other.ts'\n",
    "hls": HLS,
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
}


@pytest.mark.parametrize("suffix", ["mp4", "m3u8", "ts"])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_playlist_is_refused_before_it_opens_anything(
    tmp_path: Path, kind: str, suffix: str
) -> None:
    """What it names is not there: FFmpeg says so if it has looked."""
    path = tmp_path / f"list.{suffix}"
    path.write_text(PLAYLISTS[kind])
    with pytest.raises(ClipError, match="or a playlist of others") as refused:
        open_video(str(path))
    assert refused.value.reason == "unreadable"
