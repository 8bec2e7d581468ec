"""Rules and dashboard: promtool takes them, each alert fires when it should and only then, every metric exists."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.core import Metric

from headrace.datalayer.health_watch import HealthWatch
from headrace.datalayer.ledger import Ledger
from headrace.datalayer.store import EndpointStore
from headrace.epp.health_metrics import HealthCollector
from headrace.epp.metrics import Metrics as PickerMetrics
from headrace.epp.metrics import PoolCollector
from headrace.gateway.metrics import Metrics as GatewayMetrics
from headrace.prediction.watch import LatencyWatch
from headrace.prefixes.approximate import PrefixIndex
from headrace.scheduling.config import PrefixSettings

from .promql import metrics

FILES = Path(__file__).resolve().parents[3] / "roles/inference_monitoring/files"
TOOLS = Path.home() / ".cache/headrace/tools"
RULES = yaml.safe_load((FILES / "rules.yml").read_text())["groups"]
ALERTS = [rule for group in RULES for rule in group["rules"] if "alert" in rule]
RECORDED = {rule["record"]: rule["expr"] for group in RULES for rule in group["rules"] if "record" in rule}
DASHBOARD = json.loads((FILES / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]

# Alert -> series that make it fire, series that must not, and the labels by which it is told from others.
CASES: dict[str, tuple[dict[str, str], dict[str, str], dict[str, str]]] = {
    "HeadracePoolWithoutEndpoints": (
        {'inference_pool_ready_pods{namespace="n",name="llama"}': "0x60"},
        {'inference_pool_ready_pods{namespace="n",name="llama"}': "1x60"},
        {"namespace": "n", "name": "llama"},
    ),
    "HeadracePickerUnreachable": (
        {'up{job="monitoring/headrace-endpoint-pickers",namespace="n",pod="p"}': "0x60"},
        {
            'up{job="monitoring/headrace-endpoint-pickers",namespace="n",pod="p"}': "1x60",
            'up{job="other",namespace="n",pod="p"}': "0x60",
        },
        {"job": "monitoring/headrace-endpoint-pickers", "namespace": "n", "pod": "p"},
    ),
    "HeadraceRequestsFail": (
        {
            'inference_objective_request_total{namespace="n",model_name="m"}': "0+60x60",
            'inference_objective_request_error_total{namespace="n",model_name="m",error_code="503"}': "0+6x60",
        },
        {
            'inference_objective_request_total{namespace="n",model_name="m"}': "0+60x60",
            'inference_objective_request_error_total{namespace="n",model_name="m",error_code="503"}': "0+1x60",
        },
        {"namespace": "n", "model_name": "m"},
    ),
    "HeadraceFailureMode": (
        {'headrace_epp_failure_mode_answers_total{namespace="n",pod="p",mode="FailOpen",cause="deadline"}': "0+1x60"},
        {'headrace_epp_failure_mode_answers_total{namespace="n",pod="p",mode="FailOpen",cause="deadline"}': "7x60"},
        {"namespace": "n", "pod": "p", "cause": "deadline"},
    ),
    "HeadraceSlowDecisions": (
        {
            'inference_extension_scheduler_e2e_duration_seconds_bucket{namespace="n",le="0.05"}': "0+9x60",
            'inference_extension_scheduler_e2e_duration_seconds_bucket{namespace="n",le="0.1"}': "0+10x60",
            'inference_extension_scheduler_e2e_duration_seconds_bucket{namespace="n",le="+Inf"}': "0+10x60",
        },
        {
            'inference_extension_scheduler_e2e_duration_seconds_bucket{namespace="n",le="0.05"}': "0+10x60",
            'inference_extension_scheduler_e2e_duration_seconds_bucket{namespace="n",le="+Inf"}': "0+10x60",
        },
        {"namespace": "n"},
    ),
    "HeadraceStaleEndpointMetrics": (
        {'headrace_epp_endpoint_metrics_fresh{namespace="n",endpoint="10.0.0.1:8000"}': "0x60"},
        {'headrace_epp_endpoint_metrics_fresh{namespace="n",endpoint="10.0.0.1:8000"}': "1x60"},
        {"namespace": "n", "endpoint": "10.0.0.1:8000"},
    ),
    "HeadraceQueuesGrow": (
        {'inference_pool_average_queue_size{namespace="n",name="llama"}': "11x60"},
        {'inference_pool_average_queue_size{namespace="n",name="llama"}': "10x60"},
        {"namespace": "n", "name": "llama"},
    ),
    "HeadraceKvCacheFull": (
        {'inference_pool_average_kv_cache_utilization{namespace="n",name="llama"}': "0.96x60"},
        {'inference_pool_average_kv_cache_utilization{namespace="n",name="llama"}': "0.9x60"},
        {"namespace": "n", "name": "llama"},
    ),
    "HeadraceEndpointOut": (
        {'headrace_epp_endpoint_health{namespace="n",pod="p",endpoint="e",state="out",reason="asleep"}': "1x60"},
        {'headrace_epp_endpoint_health{namespace="n",pod="p",endpoint="e",state="trial",reason="new"}': "1x60"},
        {"namespace": "n", "endpoint": "e", "reason": "asleep"},
    ),
    "HeadracePoolSick": (
        {
            'headrace_epp_endpoints_by_health{namespace="n",pod="p",state="good"}': "1x60",
            'headrace_epp_endpoints_by_health{namespace="n",pod="p",state="suspect"}': "1x60",
            'headrace_epp_endpoints_by_health{namespace="n",pod="p",state="out"}': "1x60",
        },
        {
            'headrace_epp_endpoints_by_health{namespace="n",pod="p",state="good"}': "1x60",
            'headrace_epp_endpoints_by_health{namespace="n",pod="p",state="trial"}': "3x60",
            'headrace_epp_endpoints_by_health{namespace="n",pod="p",state="out"}': "1x60",
        },
        {"namespace": "n", "pod": "p"},
    ),
    "HeadraceServedElsewhere": (
        {'headrace_epp_served_elsewhere_total{namespace="n",pod="p"}': "0+60x60"},
        {'headrace_epp_served_elsewhere_total{namespace="n",pod="p"}': "0+1x60"},
        {"namespace": "n", "pod": "p"},
    ),
    # 2 in 100 are late by 0.2 to 0.5 s, and by 20 to 50 ms.
    "HeadraceEventLoopLags": (
        {
            'headrace_epp_loop_lag_seconds_bucket{namespace="n",pod="p",le="0.2"}': "0+98x60",
            'headrace_epp_loop_lag_seconds_bucket{namespace="n",pod="p",le="0.5"}': "0+100x60",
            'headrace_epp_loop_lag_seconds_bucket{namespace="n",pod="p",le="+Inf"}': "0+100x60",
        },
        {
            'headrace_epp_loop_lag_seconds_bucket{namespace="n",pod="p",le="0.02"}': "0+98x60",
            'headrace_epp_loop_lag_seconds_bucket{namespace="n",pod="p",le="0.05"}': "0+100x60",
            'headrace_epp_loop_lag_seconds_bucket{namespace="n",pod="p",le="+Inf"}': "0+100x60",
        },
        {"namespace": "n", "pod": "p"},
    ),
    "HeadraceBodiesTakeAllMemory": (
        {'headrace_epp_refused_total{namespace="n",pod="p",reason="rejected-body-memory"}': "0+6x60"},
        {'headrace_epp_refused_total{namespace="n",pod="p",reason="bad-request"}': "0+6x60"},
        {"namespace": "n", "pod": "p"},
    ),
    "HeadraceStreamErrors": (
        {'headrace_epp_stream_errors_total{namespace="n",pod="p",reason="protocol"}': "0+60x60"},
        {'headrace_epp_stream_errors_total{namespace="n",pod="p",reason="protocol"}': "0+1x60"},
        {"namespace": "n", "pod": "p", "reason": "protocol"},
    ),
    "HeadraceSlowFirstToken": (
        {
            'vllm:time_to_first_token_seconds_bucket{namespace="n",model_name="m",le="5"}': "0+9x60",
            'vllm:time_to_first_token_seconds_bucket{namespace="n",model_name="m",le="10"}': "0+10x60",
            'vllm:time_to_first_token_seconds_bucket{namespace="n",model_name="m",le="+Inf"}': "0+10x60",
        },
        {
            'vllm:time_to_first_token_seconds_bucket{namespace="n",model_name="m",le="5"}': "0+10x60",
            'vllm:time_to_first_token_seconds_bucket{namespace="n",model_name="m",le="+Inf"}': "0+10x60",
        },
        {"namespace": "n", "model_name": "m"},
    ),
    "HeadracePreemptions": (
        {'vllm:num_preemptions_total{namespace="n",pod="p",engine="0"}': "0+30x60"},
        {'vllm:num_preemptions_total{namespace="n",pod="p",engine="0"}': "0+1x60"},
        {"namespace": "n", "pod": "p"},
    ),
    "HeadraceModelServerUnreachable": (
        {'up{job="monitoring/headrace-model-servers",namespace="n",pod="p"}': "0x60"},
        {'up{job="monitoring/headrace-model-servers",namespace="n",pod="p"}': "1x60"},
        {"job": "monitoring/headrace-model-servers", "namespace": "n", "pod": "p"},
    ),
    "HeadraceGatewayControllerUnreachable": (
        {'up{job="monitoring/headrace-gateway-controllers",namespace="n",pod="p"}': "0x60"},
        {'up{job="monitoring/headrace-gateway-controllers",namespace="n",pod="p"}': "1x60"},
        {"job": "monitoring/headrace-gateway-controllers", "namespace": "n", "pod": "p"},
    ),
    "HeadraceTranslationFails": (
        {'headrace_gateway_translations_total{namespace="n",pod="p",result="failed"}': "0+1x60"},
        {'headrace_gateway_translations_total{namespace="n",pod="p",result="ok"}': "0+1x60"},
        {"namespace": "n"},
    ),
    "HeadraceEnvoyRefuses": (
        {'headrace_gateway_discovery_refusals_total{namespace="n",pod="p",kind="eds"}': "0+1x60"},
        {'headrace_gateway_discovery_refusals_total{namespace="n",pod="p",kind="eds"}': "3x60"},
        {"namespace": "n", "kind": "eds"},
    ),
    "HeadraceStatusNotWritten": (
        {'headrace_gateway_status_writes_total{namespace="n",pod="p",result="failed"}': "0+1x60"},
        {'headrace_gateway_status_writes_total{namespace="n",pod="p",result="conflict"}': "0+1x60"},
        {"namespace": "n"},
    ),
}

# Recorded series -> series that it is made of, and its samples: labels and value. Of two Pods each, as a rule that
# forgot to sum would give one too many; with a label of other models, as one that summed too much would give one only.
DURATIONS = "inference_objective_request_duration_seconds_bucket"
ONE, OTHER = {"namespace": "n", "model_name": "m"}, {"namespace": "n", "model_name": "o"}
VALUES: dict[str, tuple[dict[str, str], list[tuple[dict[str, str], float]]]] = {
    # 60 and 120 a minute are 3 a second.
    "headrace:requests:rate5m": (
        {
            'inference_objective_request_total{namespace="n",model_name="m",pod="p"}': "0+60x60",
            'inference_objective_request_total{namespace="n",model_name="m",pod="q"}': "0+120x60",
            'inference_objective_request_total{namespace="n",model_name="o",pod="p"}': "0+30x60",
        },
        [(ONE, 3), (OTHER, 0.5)],
    ),
    "headrace:request_errors:ratio_rate5m": (
        {
            'inference_objective_request_total{namespace="n",model_name="m",pod="p"}': "0+60x60",
            'inference_objective_request_total{namespace="n",model_name="m",pod="q"}': "0+60x60",
            'inference_objective_request_error_total{namespace="n",model_name="m",pod="p",error_code="503"}': "0+6x60",
            'inference_objective_request_error_total{namespace="n",model_name="m",pod="q",error_code="429"}': "0+24x60",
            # No requests at all: no ratio, and none that is not a number.
            'inference_objective_request_total{namespace="n",model_name="o",pod="p"}': "5x60",
            'inference_objective_request_error_total{namespace="n",model_name="o",pod="p",error_code="503"}': "5x60",
        },
        [(ONE, 0.25)],
    ),
    # 190 of 200 took at most a second, and they are 95 of 100: exactly its bound.
    "headrace:request_duration_seconds:p95_5m": (
        {
            DURATIONS + '{namespace="n",model_name="m",pod="p",le="1"}': "0+95x60",
            DURATIONS + '{namespace="n",model_name="m",pod="q",le="1"}': "0+95x60",
            DURATIONS + '{namespace="n",model_name="m",pod="p",le="4"}': "0+100x60",
            DURATIONS + '{namespace="n",model_name="m",pod="q",le="4"}': "0+100x60",
            DURATIONS + '{namespace="n",model_name="m",pod="p",le="+Inf"}': "0+100x60",
            DURATIONS + '{namespace="n",model_name="m",pod="q",le="+Inf"}': "0+100x60",
        },
        [(ONE, 1)],
    ),
    # All within one bucket, of which 99 of 100 are below 99 hundredths of the way.
    "headrace:decision_duration_seconds:p99_5m": (
        {
            'inference_extension_scheduler_e2e_duration_seconds_bucket{namespace="n",pod="p",le="0.1"}': "0+60x60",
            'inference_extension_scheduler_e2e_duration_seconds_bucket{namespace="n",pod="q",le="0.1"}': "0+60x60",
            'inference_extension_scheduler_e2e_duration_seconds_bucket{namespace="n",pod="p",le="+Inf"}': "0+60x60",
            'inference_extension_scheduler_e2e_duration_seconds_bucket{namespace="n",pod="q",le="+Inf"}': "0+60x60",
        },
        [({"namespace": "n"}, 0.099)],
    ),
    "headrace:time_to_first_token_seconds:p95_5m": (
        {
            'vllm:time_to_first_token_seconds_bucket{namespace="n",model_name="m",pod="p",le="2"}': "0+60x60",
            'vllm:time_to_first_token_seconds_bucket{namespace="n",model_name="m",pod="q",le="2"}': "0+60x60",
            'vllm:time_to_first_token_seconds_bucket{namespace="n",model_name="m",pod="p",le="+Inf"}': "0+60x60",
            'vllm:time_to_first_token_seconds_bucket{namespace="n",model_name="m",pod="q",le="+Inf"}': "0+60x60",
        },
        [(ONE, 1.9)],
    ),
    # Half below 20 ms, half between 20 and 40 ms: 95 of 100 are below nine tenths of the way between.
    "headrace:inter_token_latency_seconds:p95_5m": (
        {
            'vllm:inter_token_latency_seconds_bucket{namespace="n",model_name="m",pod="p",le="0.02"}': "0+60x60",
            'vllm:inter_token_latency_seconds_bucket{namespace="n",model_name="m",pod="p",le="0.04"}': "0+60x60",
            'vllm:inter_token_latency_seconds_bucket{namespace="n",model_name="m",pod="p",le="+Inf"}': "0+60x60",
            'vllm:inter_token_latency_seconds_bucket{namespace="n",model_name="m",pod="q",le="0.02"}': "0x60",
            'vllm:inter_token_latency_seconds_bucket{namespace="n",model_name="m",pod="q",le="0.04"}': "0+60x60",
            'vllm:inter_token_latency_seconds_bucket{namespace="n",model_name="m",pod="q",le="+Inf"}': "0+60x60",
        },
        [(ONE, 0.038)],
    ),
    "headrace:prefix_cache_hits:ratio_rate5m": (
        {
            'vllm:prefix_cache_queries_total{namespace="n",model_name="m",pod="p"}': "0+600x60",
            'vllm:prefix_cache_queries_total{namespace="n",model_name="m",pod="q"}': "0+200x60",
            'vllm:prefix_cache_hits_total{namespace="n",model_name="m",pod="p"}': "0+500x60",
            'vllm:prefix_cache_hits_total{namespace="n",model_name="m",pod="q"}': "0+100x60",
            'vllm:prefix_cache_queries_total{namespace="n",model_name="o",pod="p"}': "7x60",
            'vllm:prefix_cache_hits_total{namespace="n",model_name="o",pod="p"}': "7x60",
        },
        [(ONE, 0.75)],
    ),
    "headrace:generated_tokens:rate5m": (
        {
            'vllm:generation_tokens_total{namespace="n",model_name="m",pod="p"}': "0+6000x60",
            'vllm:generation_tokens_total{namespace="n",model_name="m",pod="q"}': "0+3000x60",
            'vllm:generation_tokens_total{namespace="n",model_name="o",pod="q"}': "0+60x60",
        },
        [(ONE, 150), (OTHER, 1)],
    ),
}


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = TOOLS / "promtool"
    assert program.exists(), f"{program} is missing: run `make tools`"
    return subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def known() -> set[str]:
    """Every series that a picker, a gateway controller and a vLLM server expose; `up` is Prometheus' own."""
    picker = PickerMetrics("pool")
    store = EndpointStore()
    collector = PoolCollector("pool", store, Ledger(store), PrefixIndex(PrefixSettings()))
    picker.registry.register(collector)
    health = HealthWatch(store, clock=lambda: 0.0)
    picker.registry.register(HealthCollector(health, LatencyWatch(store, clock=lambda: 0.0, wanted=True)))
    families: list[Metric] = [*picker.registry.collect(), *GatewayMetrics().registry.collect()]
    kinds = {family.name: family.type for family in families}
    page = (Path(__file__).resolve().parents[2] / "data/vllm-0.32.0-metrics.txt").read_text()
    kinds |= dict(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.M))
    names = {"up"}
    for name, kind in kinds.items():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(kind, [""])
        names |= {name.removesuffix("_total") + suffix if kind == "counter" else name + suffix for suffix in suffixes}
    return names


def test_promtool_takes_the_rules() -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", str(FILES / "rules.yml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case() -> None:
    assert {alert["alert"] for alert in ALERTS} == set(CASES)


def test_every_recording_rule_has_a_value() -> None:
    assert set(RECORDED) == set(VALUES)


@pytest.mark.parametrize("record", VALUES)
def test_recording_rules_record_the_right_value(tmp_path: Path, record: str) -> None:
    series, samples = VALUES[record]
    expected = []
    for labels, value in samples:
        text = ",".join(f'{key}="{label}"' for key, label in labels.items())
        expected.append({"labels": f"{record}{{{text}}}", "value": value})
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": record, "eval_time": "40m", "exp_samples": expected}],
    }
    file = tmp_path / "test.yml"
    document = {
        "rule_files": [str(FILES / "rules.yml")],
        "evaluation_interval": "1m",
        # Rates and quantiles are sums of fractions.
        "fuzzy_compare": True,
        "tests": [test],
    }
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    done = promtool("test", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("fires", [True, False], ids=["fires", "stays silent"])
def test_alerts(tmp_path: Path, fires: bool) -> None:
    tests: list[dict[str, Any]] = []
    for alert in ALERTS:
        firing, silent, labels = CASES[alert["alert"]]
        series = firing if fires else silent
        shown = {"__name__": "ALERTS", "alertname": alert["alert"], "alertstate": "firing", **alert["labels"], **labels}
        text = ",".join(f'{key}="{value}"' for key, value in sorted(shown.items()) if key != "__name__")
        tests.append(
            {
                "name": alert["alert"],
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": [
                    {
                        "expr": f'ALERTS{{alertname="{alert["alert"]}",alertstate="firing"}}',
                        "eval_time": "40m",
                        "exp_samples": [{"labels": f"ALERTS{{{text}}}", "value": 1}] if fires else [],
                    }
                ],
            }
        )
    file = tmp_path / "test.yml"
    document = {"rule_files": [str(FILES / "rules.yml")], "evaluation_interval": "1m", "tests": tests}
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    done = promtool("test", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_says_what_to_look_at() -> None:
    for alert in ALERTS:
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert alert["annotations"]["summary"]
        assert alert["annotations"]["description"]
        assert alert["for"]


def test_every_metric_of_the_rules_exists(known: set[str]) -> None:
    for group in RULES:
        for rule in group["rules"]:
            named = metrics(rule["expr"])
            assert named
            assert named <= known | set(RECORDED), (rule, named - known)


def test_every_metric_of_the_dashboard_exists(known: set[str]) -> None:
    for query in QUERIES:
        named = metrics(query)
        assert named
        assert named <= known, (query, named - known)


def test_the_dashboards_queries_are_promql(tmp_path: Path) -> None:
    """promtool parses them as rules, Grafana's variables filled in."""
    rules = []
    for number, query in enumerate(QUERIES):
        filled = query.replace("$__rate_interval", "5m").replace("$namespace", ".*")
        rules.append({"record": f"query:number{number}", "expr": filled})
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = promtool("check", "rules", str(tmp_path / "queries.yml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_is_whole() -> None:
    identifiers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(identifiers) == len(set(identifiers))
    assert DASHBOARD["uid"]
    assert DASHBOARD.get("id") is None, "Grafana gives it"
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"])))
    assert used <= variables | {"__rate_interval"}
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(places) == len(set(places))
    for panel in PANELS:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        assert panel["title"]
