"""What Envoy does by itself where a model server fails. Pure.

It sends a request once more, to the next endpoint of the pick's list, but only while few others are sent once more. And
its own choice, which it makes where nothing was picked or the list has ended, passes by servers that have just failed.
`docs/gateway.md` has the figures that these settings were chosen by."""

from __future__ import annotations

from headrace.gateway.clusters import number, retry_elsewhere, seconds
from headrace.xds.envoy.config.cluster.v3 import cluster_pb2, outlier_detection_pb2
from headrace.xds.envoy.config.route.v3 import route_components_pb2

# Only what no server has begun to answer.
RETRY_ON = "connect-failure,refused-stream,reset-before-request,retriable-status-codes"
# A server that drains answers 500. One number serves all causes in Envoy: a 500 that comes of the request itself should
# not be had three times.
RETRIABLE_STATUSES = (500, 503)
RETRIES = 1
# How many of a pool's requests in flight may be retries: servers that fail together get little more than their load.
BUDGET_PERCENT = 20.0
LEAST_BUDGET = 3

_FAILURES_IN_A_ROW = 3
_EJECTED_SECONDS = 2.0
_MOST_EJECTED_PERCENT = 50


def retry_policy() -> route_components_pb2.RetryPolicy:
    """The retries of a route that leads to a pool and says nothing of its own."""
    policy = route_components_pb2.RetryPolicy(retry_on=RETRY_ON, num_retries=number(RETRIES))
    policy.retriable_status_codes.extend(RETRIABLE_STATUSES)
    # Past the end of the pick's list any endpoint may be chosen: not again the one that has just failed.
    retry_elsewhere(policy)
    return policy


def bound_failures(cluster: cluster_pb2.Cluster) -> None:
    """Give retries of a pool's cluster a budget, and have Envoy's own choice pass by servers that fail, for a while.

    What was picked goes where it was picked to: `override_host` does not look at health. What the rule's policies say
    of outliers stays."""
    for thresholds in cluster.circuit_breakers.thresholds:
        thresholds.ClearField("max_retries")
        thresholds.retry_budget.budget_percent.value = BUDGET_PERCENT
        thresholds.retry_budget.min_retry_concurrency.value = LEAST_BUDGET
    if not cluster.HasField("outlier_detection"):
        _pass_by_failing(cluster.outlier_detection)


def _pass_by_failing(detection: outlier_detection_pb2.OutlierDetection) -> None:
    detection.split_external_local_origin_errors = True
    for kind in ("consecutive_5xx", "consecutive_local_origin_failure"):
        getattr(detection, kind).value = _FAILURES_IN_A_ROW
        getattr(detection, f"enforcing_{kind}").value = 100
    for kind in ("consecutive_gateway_failure", "success_rate", "local_origin_success_rate"):
        getattr(detection, f"enforcing_{kind}").value = 0
    detection.interval.CopyFrom(seconds(_EJECTED_SECONDS / 2))
    detection.base_ejection_time.CopyFrom(seconds(_EJECTED_SECONDS))
    detection.max_ejection_time.CopyFrom(seconds(_EJECTED_SECONDS))
    detection.max_ejection_percent.value = _MOST_EJECTED_PERCENT
