"""Decoding: clips to uint8 pixels, in processes that can be killed. `pool.DecodePool` is the way in."""
