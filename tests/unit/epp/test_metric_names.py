"""The reference picker's metrics (v1.5.0): each is there under its name and with its labels."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from headrace.core import Endpoint, FailureMode
from headrace.epp.flow_metrics import FlowControlCollector
from headrace.epp.metrics import PoolCollector
from headrace.epp.plugin_metrics import PluginDurations

from .test_director import director, endpoints, needed

M = ("model_name", "target_model_name")
OBJECTIVE, POOL, EXTENSION = "inference_objective", "inference_pool", "inference_extension"
FLOW = f"{EXTENSION}_flow_control"
# Those of latency predictions are left out: nothing here predicts.
NAMES = {
    f"{OBJECTIVE}_request_total": (*M, "priority"),
    f"{OBJECTIVE}_request_error_total": (*M, "error_code"),
    f"{OBJECTIVE}_request_duration_seconds": M,
    f"{OBJECTIVE}_request_sizes": M,
    f"{OBJECTIVE}_response_sizes": M,
    f"{OBJECTIVE}_input_tokens": M,
    f"{OBJECTIVE}_output_tokens": M,
    f"{OBJECTIVE}_prompt_cached_tokens": M,
    f"{OBJECTIVE}_normalized_time_per_output_token_seconds": M,
    f"{OBJECTIVE}_request_ttft_seconds": M,
    f"{OBJECTIVE}_request_tpot_seconds": M,
    f"{OBJECTIVE}_running_requests": ("model_name",),
    f"{OBJECTIVE}_request_slo_violation_total": (*M, "type"),
    f"{OBJECTIVE}_inference_request_metric": (*M, "type"),
    f"{POOL}_average_kv_cache_utilization": ("name",),
    f"{POOL}_average_queue_size": ("name",),
    f"{POOL}_average_running_requests": ("name",),
    f"{POOL}_ready_pods": ("name",),
    f"{POOL}_per_pod_queue_size": ("name", "model_server_pod"),
    f"{EXTENSION}_scheduler_e2e_duration_seconds": (),
    f"{EXTENSION}_scheduler_attempts_total": ("status", "target_model_name", "pod_name", "namespace", "port"),
    f"{EXTENSION}_plugin_duration_seconds": ("extension_point", "plugin_type", "plugin_name"),
    f"{EXTENSION}_prefix_indexer_size": (),
    f"{EXTENSION}_prefix_indexer_hit_ratio": (),
    f"{EXTENSION}_prefix_indexer_hit_bytes": (),
    f"{EXTENSION}_info": ("commit", "build_ref"),
    f"{EXTENSION}_model_rewrite_decisions_total": ("model_rewrite_name", "model_name", "target_model"),
    f"{FLOW}_request_queue_duration_seconds": ("fairness_id", "priority", "outcome", "inference_pool", *M),
    f"{FLOW}_dispatch_cycle_duration_seconds": (),
    f"{FLOW}_request_enqueue_duration_seconds": ("fairness_id", "priority", "outcome"),
    f"{FLOW}_queue_size": ("fairness_id", "priority", "inference_pool", *M),
    f"{FLOW}_queue_bytes": ("fairness_id", "priority", "inference_pool", *M),
    f"{FLOW}_pool_saturation": ("inference_pool",),
}


async def test_every_name_and_its_labels() -> None:
    d = director()
    d.pool.endpoints_changed(endpoints(2), FailureMode.CLOSE)
    await d.director.decide(needed(model="m", prompt=b"x" * 600))
    registry = d.metrics.registry
    registry.register(PoolCollector("pool", d.pool.store, d.pool.ledger, d.index))
    registry.register(FlowControlCollector(d.metrics.flow_control, d.flow.waiting, d.flow.saturation))
    families = {family.name: family for family in registry.collect()}
    declared = {
        collector._name: tuple(collector._labelnames)
        for collector in registry._collector_to_names
        if hasattr(collector, "_labelnames")
    }
    missing = []
    for name, labels in NAMES.items():
        base = name.removesuffix("_total")
        family = families.get(base)
        if family is None:
            missing.append(name)
        elif base in declared:
            assert declared[base] == labels, name
        elif family.samples:
            assert {*family.samples[0].labels} == set(labels), name
    assert not missing


async def test_plugins_are_measured_in_one_decision_of_sixteen() -> None:
    d = director()
    d.pool.endpoints_changed(endpoints(2), FailureMode.CLOSE)

    def counts() -> dict[tuple[str, str], float]:
        return {
            (sample.labels["extension_point"], sample.labels["plugin_type"]): sample.value
            for family in d.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "inference_extension_plugin_duration_seconds_count"
        }

    for number in range(17):
        await d.director.decide(needed(request_id=str(number)))
        if number in (0, 15):
            assert set(counts().values()) == {1.0}
    assert counts() == {
        ("Filter", "health-filter"): 2.0,
        ("Filter", "adapter-affinity-filter"): 2.0,
        ("Scorer", "queue-scorer"): 2.0,
        ("Scorer", "kv-cache-utilization-scorer"): 2.0,
        ("Scorer", "prefix-cache-scorer"): 2.0,
        ("Picker", "max-score-picker"): 2.0,
    }


def test_a_plugins_time_is_its_own() -> None:
    registry = CollectorRegistry()
    times = iter([1.0, 1.5, 9.0, 9.25, 9.25])
    stopwatch = PluginDurations(registry, clock=lambda: next(times)).of_next()
    assert stopwatch is not None
    stopwatch.lap("Filter", "f", "f")
    stopwatch.lap("Scorer", "s", "named")
    name = "inference_extension_plugin_duration_seconds_sum"
    labels = {"extension_point": "Scorer", "plugin_type": "s", "plugin_name": "named"}
    assert registry.get_sample_value(name, labels) == pytest.approx(0.25)


def test_a_pod_with_several_ports_has_one_queue() -> None:
    d = director()
    ports = [Endpoint(namespace="n", pod_name="p", address="10.0.0.1", port=port) for port in (8000, 8001)]
    d.pool.endpoints_changed(tuple(ports), FailureMode.CLOSE)
    d.metrics.registry.register(PoolCollector("pool", d.pool.store, d.pool.ledger, d.index))
    queues = [
        sample.labels["model_server_pod"]
        for family in d.metrics.registry.collect()
        for sample in family.samples
        if sample.name == "inference_pool_per_pod_queue_size"
    ]
    assert queues == ["p"]
