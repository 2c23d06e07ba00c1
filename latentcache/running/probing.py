"""Who looks at the sources of a corpus: a run's Ray cluster, or processes of this machine."""

from __future__ import annotations

import importlib

from latentcache.config.sections import Config
from latentcache.corpus.probe import Prober
from latentcache.planning.planner import probing_pool
from latentcache.running.ray_address import address_of
from latentcache.storage.cache_urls import is_cache_url


def prober_of(config: Config) -> Prober:
    """Return what looks at a corpus: tasks on the cluster that the run joins, else processes here.

    A Ray that the run starts by itself is this machine only, so probing need not wait for it.
    """
    if address_of(config.run) is None or is_cache_url(config.corpus.source):
        return probing_pool(config)
    cluster = importlib.import_module("latentcache.running.runners.ray_probing")
    prober: Prober = cluster.ClusterProber(config)
    return prober
