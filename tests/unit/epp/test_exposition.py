"""What /metrics shows: names, types, labels, buckets and help texts are promises to dashboards and alerts."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from headrace.epp.options import add_arguments, read_options
from headrace.epp.process import Process
from headrace.gateway.metrics import Metrics as GatewayMetrics

from ...certificates import Authority

EXPECTED = Path(__file__).with_name("exposition.txt")


def families(registry: CollectorRegistry) -> set[str]:
    """A line for each family of a registry."""
    lines = set()
    for collector in registry._collector_to_names:
        bounds = getattr(collector, "_upper_bounds", None) or getattr(collector, "_kwargs", {}).get("buckets", ())
        buckets = ",".join(f"{float(bound):g}" for bound in bounds if bound != float("inf"))
        for family in collector.collect():
            labels = getattr(collector, "_labelnames", None) or getattr(family, "_labelnames", ())
            lines.add(f"{family.type} {family.name}({', '.join(labels)}) [{buckets}] {family.documentation}")
    return lines


@pytest.fixture
def picker(tmp_path: Path) -> CollectorRegistry:
    authority = Authority("peers")
    authority.issue("epp-peers.default.svc", peer=True).write(tmp_path, authority.certificate)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    flags = [
        *("--endpoints=127.0.0.1:1", "--secure-serving=false", "--tracing"),
        *("--peers=127.0.0.1:2", f"--peer-cert-path={tmp_path}"),
    ]
    return Process(read_options(parser.parse_args(flags)))._metrics.registry


async def test_the_exposition_is_what_was_promised(picker: CollectorRegistry) -> None:
    found = families(picker) | families(GatewayMetrics().registry)
    expected = set(EXPECTED.read_text().splitlines())
    assert sorted(expected - found) == []
    # A new family is a new line in the file.
    assert sorted(found - expected) == []
