"""Clips of committed shards put into other shards as they are stored: compressed, never decoded."""
