"""Flags that exist because manifests of the reference picker have them: what they mean here, and which are refused.

Source: the reference picker's flags, v1.5.0."""

from __future__ import annotations

import argparse
from typing import Any

from headrace.epp.flag_types import InvalidFlag, boolean, duration

# As there, setting one of these is an error: the metric names follow from the engine.
_REMOVED = (
    "total-queued-requests-metric",
    "total-running-requests-metric",
    "kv-cache-usage-percentage-metric",
    "lora-info-metric",
    "cache-info-metric",
)
# Taken without effect: the reason is in the help text.
_IGNORED_TRUTHS = {
    "health-checking": "accepted; gRPC health is always served, on the ext_proc port too",
    "enable-pprof": "accepted; Go's profiler has no counterpart here",
    "zap-devel": "accepted; logs are JSON lines",
}
_IGNORED_TEXTS = {
    "zap-encoder": "accepted; logs are JSON lines",
    "zap-stacktrace-level": "accepted; errors that are faults carry their traceback",
    "zap-time-encoding": "accepted; times are RFC 3339",
}
_LEVELS = {"debug": 4, "info": 2, "warn": 1, "error": 1, "dpanic": 1, "panic": 1, "fatal": 1}


def add_reference_flags(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    flag = parser.add_argument
    truth: dict[str, Any] = {"type": boolean, "nargs": "?", "const": True}
    for name, text in _IGNORED_TRUTHS.items():
        flag(f"--{name}", default=argparse.SUPPRESS, help=text, **truth)
    tracing_help = "send a span of each pick as OTLP; where to, and how many, say the OTEL_* environment variables"
    flag("--tracing", default=False, help=tracing_help, **truth)
    for name, text in _IGNORED_TEXTS.items():
        flag(f"--{name}", default=argparse.SUPPRESS, help=text)
    flag("--zap-log-level", default="", help="debug, info, error, or a number as of -v")
    flush_help = "accepted; the pool's gauges are computed when they are asked for"
    flag("--refresh-prometheus-metrics-interval", type=duration, default=argparse.SUPPRESS, help=flush_help)
    leader_help = "one replica is ready at a time, held by a Lease; without it every replica serves"
    flag("--ha-enable-leader-election", default=False, help=leader_help, **truth)
    flag("--model-server-metrics-scheme", default="http", help="http or https, of the servers' metrics pages")
    flag("--model-server-metrics-path", default="", help="the page's path; else the engine's own")
    port_help = "the page's port; 0, the endpoint's own (deprecated by the reference picker)"
    flag("--model-server-metrics-port", type=int, default=0, help=port_help)
    verify_help = "do not verify the certificates of https metrics pages"
    flag("--model-server-metrics-https-insecure-skip-verify", default=True, help=verify_help, **truth)
    for name in _REMOVED:
        flag(f"--{name}", default=None, help="refused, as by the reference picker since 1.4: see its error")


def check_reference_flags(args: argparse.Namespace) -> None:
    """Refuse what cannot be meant here. Raises InvalidFlag."""
    for name in _REMOVED:
        value = getattr(args, name.replace("-", "_"))
        if value is not None:
            fix = (
                "this flag was removed from the reference picker too; leave it out: the metrics follow from the Pod's "
                "label inference.networking.k8s.io/engine-type (vllm, sglang, triton-tensorrt-llm, trtllm-serve)"
            )
            raise InvalidFlag(name, value, fix)
    if args.ha_enable_leader_election and args.endpoints:
        raise InvalidFlag("ha-enable-leader-election", "true", "leave it out with --endpoints: Leases need Kubernetes")
    if args.model_server_metrics_scheme not in ("http", "https"):
        raise InvalidFlag("model-server-metrics-scheme", args.model_server_metrics_scheme, "use http or https")
    if not 0 <= args.model_server_metrics_port <= 65535:
        fix = "give a port of 1 to 65535, or 0 for the endpoint's own"
        raise InvalidFlag("model-server-metrics-port", args.model_server_metrics_port, fix)


def verbosity(args: argparse.Namespace) -> int:
    """The level of -v, or of --zap-log-level where that is given. Raises InvalidFlag."""
    text: str = args.zap_log_level
    if not text:
        return int(args.verbosity)
    if text.isascii() and text.isdigit():
        return int(text)
    if text not in _LEVELS:
        raise InvalidFlag("zap-log-level", text, "use debug, info, error, or a number over 0")
    return _LEVELS[text]
