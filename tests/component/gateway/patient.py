"""The command `headrace`, whose gateway controller gives pickers more time than a real one does.

A picker that gets no CPU for two seconds is one that failed, to Envoy. Tests that are about something else would then
pass or fail by how busy the machine is. Pools whose names begin with FAILING keep the times that a user's have."""

from __future__ import annotations

import sys
from typing import Any

from headrace.cli.main import main
from headrace.core import Pool
from headrace.gateway import clusters, filters, model_routing, translate
from headrace.xds.envoy.config.cluster.v3 import cluster_pb2

FAILING = "fails-"
_SECONDS = 300


def picker_cluster(pool: Pool, *arguments: Any, **more: Any) -> cluster_pb2.Cluster:
    """The cluster of a pool's picker, with longer time limits unless the pool is one that fails."""
    usual = clusters._KEEPALIVE_TIMEOUT_SECONDS
    if pool.name.startswith(FAILING):
        return clusters.picker_cluster(pool, *arguments, **more)
    clusters._KEEPALIVE_TIMEOUT_SECONDS = _SECONDS
    try:
        cluster = clusters.picker_cluster(pool, *arguments, **more)
    finally:
        clusters._KEEPALIVE_TIMEOUT_SECONDS = usual
    cluster.connect_timeout.FromSeconds(_SECONDS)
    for check in cluster.health_checks:
        check.timeout.FromSeconds(_SECONDS)
    return cluster


if __name__ == "__main__":
    translate.picker_cluster = picker_cluster
    # A picker that fails is noticed by its connection, long before the time limit of a pick.
    filters.MESSAGE_TIMEOUT_SECONDS = model_routing._MODEL_TIMEOUT_SECONDS = _SECONDS
    sys.exit(main())
