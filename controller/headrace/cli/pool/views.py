"""Pool states and decisions as text for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headrace.cli.pool.cluster import PoolStatus
from headrace.core.pool import VERSION_OF_GROUP
from headrace.protocol.objects import ACCEPTED


def statuses(found: Sequence[PoolStatus], *, endpoints: bool) -> str:
    """A table of pools; with `endpoints`, each pool's endpoints below it. What is wrong comes last."""
    heading = ("NAMESPACE", "POOL", "VERSION", "PODS READY", "PICKERS READY", "PICKER TRUSTED", "ENDPOINTS")
    rows = [(*heading, "FAILURE MODE", "GATEWAYS")]
    for status in found:
        accepted = [
            f"{parent.name}{'' if parent.conditions.get(ACCEPTED) == 'True' else ' (not accepted)'}"
            for parent in status.parents
        ]
        rows.append(
            (
                status.namespace,
                status.name,
                VERSION_OF_GROUP[status.group],
                f"{status.ready_pods}/{status.pods}",
                f"{status.ready_pickers}/{status.pickers}",
                {True: "yes", False: "no", None: "?"}[status.trusts_picker],
                "?" if status.view is None else str(len(status.view.get("endpoints") or [])),
                "?" if status.pool is None else status.pool.failure_mode.value,
                ", ".join(accepted) or "none",
            )
        )
    parts = [table(rows)]
    if endpoints:
        parts += [endpoint_table(status.view) for status in found if status.view is not None]
    for status in found:
        subject = f"{status.namespace}/{status.name}"
        lines = [f"{subject}: {text}" for text in status.trouble]
        lines += [f"{subject}: gateway {p.name}: {reason}" for p in status.parents for reason in p.reasons]
        if lines:
            parts.append("\n".join(lines))
    return "\n\n".join(parts)


def endpoint_table(view: Mapping[str, Any]) -> str:
    """What a picker knows of its endpoints."""
    rows = [("ENDPOINT", "POD", "HEALTH", "RUNNING", "WAITING", "IN FLIGHT", "KV CACHE", "METRICS AGE", "ADAPTERS")]
    for entry in view.get("endpoints") or []:
        age = entry.get("metrics_age_seconds")
        shown = "never" if age is None else f"{age:.1f}s"
        rows.append(
            (
                str(entry.get("endpoint")),
                str(entry.get("pod")),
                _health(entry),
                str(entry.get("running")),
                str(entry.get("waiting")),
                str(entry.get("in_flight")),
                f"{100 * float(entry.get('kv_usage') or 0):.0f}%",
                shown if entry.get("metrics_fresh") else f"{shown} (stale)",
                ", ".join(entry.get("running_adapters") or []) or "-",
            )
        )
    return table(rows)


def _health(entry: Mapping[str, Any]) -> str:
    reason = entry.get("health_reason")
    return f"{entry.get('health') or '?'}{f' ({reason})' if reason else ''}"


def decision(found: Mapping[str, Any]) -> str:
    """One decision: where the request went, why, and how each candidate did."""
    lines = []
    asked, model = found.get("asked_model"), found.get("model")
    renamed = f" (asked for {asked})" if asked and asked != model else ""
    facts = [
        ("request", found.get("request_id")),
        ("time", found.get("time")),
        ("pool", found.get("pool")),
        ("picker", found.get("picker")),
        ("path", found.get("path")),
        ("model", f"{model or 'none named'}{renamed}"),
        ("objective", found.get("objective") and f"{found['objective']}, priority {found.get('priority')}"),
        ("body", f"{found.get('body_bytes')} bytes, {found.get('prompt_blocks')} prefix blocks"),
    ]
    refused = found.get("refused")
    if refused:
        facts.append(("refused", f"{refused.get('status')} {refused.get('reason')}"))
    else:
        facts.append(("went to", f"{found.get('winner')} (Pod {found.get('winner_pod') or '?'})"))
    if found.get("fallbacks"):
        facts.append(("fallbacks", ", ".join(found["fallbacks"])))
    facts.append(("because", found.get("reason")))
    not_good = found.get("not_good") or {}
    facts.append(("not good", "; ".join(f"{endpoint} {standing}" for endpoint, standing in not_good.items())))
    facts.append(("took", f"{1e3 * float(found.get('decision_seconds') or 0):.2f} ms"))
    lines += [f"{name:<10} {value}" for name, value in facts if value]
    candidates = sorted(found.get("candidates") or [], key=lambda c: -float(c.get("total") or 0))
    if candidates:
        scorers = list(candidates[0].get("scores") or {})
        rows = [("CANDIDATE", "TOTAL", *(name.upper() for name in scorers), "PREFIX BLOCKS")]
        for candidate in candidates:
            scores = candidate.get("scores") or {}
            rows.append(
                (
                    str(candidate.get("endpoint")),
                    f"{float(candidate.get('total') or 0):.3f}",
                    *(f"{float(scores.get(name, 0)):.3f}" for name in scorers),
                    str(candidate.get("prefix_blocks_matched")),
                )
            )
        lines += ["", table(rows)]
    return "\n".join(lines)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows, the first of them a heading, in columns."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
