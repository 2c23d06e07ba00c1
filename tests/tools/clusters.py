"""Ray clusters of several machines on this one, started as often as it takes."""

from __future__ import annotations

from typing import Any

import ray
from ray.cluster_utils import Cluster

TRIES = 5


def start_cluster(**head: Any) -> Cluster:
    """Start a cluster of one machine. On a busy one Ray may not be up within the 30 s that it waits."""
    for number in range(1, TRIES + 1):
        try:
            return Cluster(
                initialize_head=True, head_node_args={**head, "include_dashboard": False}
            )
        except Exception:
            if number == TRIES:
                raise
    raise AssertionError


def add_machine(cluster: Cluster, **node: Any) -> Any:
    """Add a machine to a cluster."""
    for number in range(1, TRIES + 1):
        try:
            return cluster.add_node(**node)
        except Exception:
            if number == TRIES:
                raise
    raise AssertionError


def end_cluster(cluster: Cluster) -> None:
    """Leave a cluster and end it."""
    ray.shutdown()
    cluster.shutdown()
