"""Runners: hand shards to workers and yield what becomes of them. `ray`, or `local` for one process."""
