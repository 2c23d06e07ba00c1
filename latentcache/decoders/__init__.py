"""Decoding: clips to uint8 pixels, in processes that can be killed. `pool.DecodePool` is the way in."""

import av  # noqa: F401 before decord, whose libraries of the same names would be taken for PyAV's
