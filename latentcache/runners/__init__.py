"""Runners: hand shards to workers and yield what becomes of them. `ray` for machines, `local` for one process."""
