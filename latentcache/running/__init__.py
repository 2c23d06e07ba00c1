"""From a planned cache to committed shards: the driver, its workers and runners."""
