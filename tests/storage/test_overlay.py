"""Objects that lie over those of a folder, to be read before they are written."""

from __future__ import annotations

from pathlib import Path

from latentcache.storage.folder import Storage
from latentcache.storage.overlay import Overlay


def test_objects_lie_over_a_folder_and_nothing_is_written(tmp_path: Path) -> None:
    below = Storage(str(tmp_path))
    below.write("a", b"below")
    overlay = Overlay(below, {"b": b"0123456789"})
    assert overlay.read_ranges("a", [(0, 3)]) == [b"bel"]
    assert overlay.read_ranges("b", [(2, 3), (8, 5)]) == [b"234", b"89"]
    assert not below.exists("b")
