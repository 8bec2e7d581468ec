"""The report of a replacement: JSON for machines, and one HTML page with its own plots and nothing to fetch. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

import yaml

from headrace.core import EXTENSION_GROUP
from headrace.replace.gates import Check, GateResult
from headrace.replace.machine import old_is_kept
from headrace.replace.plan import Plan
from headrace.replace.routes import swap_of
from headrace.replace.state import Phase, State, state_as_json
from headrace.replace.weights import final_refs

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2733; --soft: #667; --line: #ccd3da; --old: #8a94a0; --new: #0b6bcb;
 --served: #b35900; --good: #1a7f37; --bad: #c0262d; --paper: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaee; --soft: #9aa5b1; --line: #3a444e; --old: #8a94a0;
 --new: #59a6ff; --served: #ffa657; --good: #4ac26b; --bad: #ff6b6b; --paper: #14191f; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
 margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.pass { color: var(--good); } .fail, .insufficient { color: var(--bad); font-weight: 600; }
.soft { color: var(--soft); } svg { width: 100%; height: auto; } pre { overflow-x: auto; }
svg text { fill: var(--soft); font-size: 11px; } svg .axis { stroke: var(--line); }
"""
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _BOTTOM = 640, 180, 72, 620, 22
# Room that the label of a step takes, such as "100 %".
_LABEL = 40


def as_json(plan: Plan, state: State) -> dict[str, Any]:
    """Everything that is recorded, with the outcome on top."""
    return {
        "outcome": state.phase.value,
        "reason": state.reason,
        "seconds": _seconds(state),
        "inventory": inventory_change(plan, state),
        "routes": routes_to_commit(plan, state),
        "plan": plan.as_json(),
        "state": state_as_json(state),
    }


def inventory_change(plan: Plan, state: State) -> list[str]:
    """What has to change in the inventory so that site.yml finds nothing to do, as lines for people."""
    if state.phase is not Phase.DONE:
        return ["The routes are as they were: leave the inventory's routes alone."]
    version = f", api_version: {'v1alpha2' if plan.new.group == EXTENSION_GROUP else 'v1'}"
    changed = version if plan.new.group != plan.old.group else ""
    routes = ", ".join(str(record) for record in state.records)
    lines = [
        f"inference_gateway_routes, in {routes}: in every rule replace the backend pool: {plan.old.name} by "
        f"pool: {plan.new.name}{changed}; keep its weight."
    ]
    if not old_is_kept(state, plan):
        lines.append(f"inference_pool_pools: remove {plan.old.name}; vllm_model_server_groups: remove its servers.")
    else:
        lines.append(f"inference_pool_pools: keep {plan.old.name} as long as it is kept for a rollback.")
    return lines


def routes_to_commit(plan: Plan, state: State) -> list[dict[str, Any]]:
    """The backends that each recorded rule has to have in whatever the routes are kept in, Git say."""
    found = []
    for record in state.records:
        swap = swap_of(plan, record.namespace)
        for rule in record.rules:
            refs = final_refs(rule.refs, swap) if state.phase is Phase.DONE else rule.refs
            backends = [dict(ref) for ref in refs]
            found.append({"route": str(record), "rule": rule.index, "name": rule.name, "backendRefs": backends})
    return found


def commit_lines(plan: Plan, state: State) -> list[str]:
    """The same as YAML, a document for each rule; nothing for a replacement that has not ended."""
    lines: list[str] = []
    for entry in routes_to_commit(plan, state) if state.is_finished else ():
        name = f" ({entry['name']})" if entry["name"] else ""
        lines += ["---", f"# {entry['route']}, rule {entry['rule']}{name}"]
        lines += yaml.safe_dump({"backendRefs": entry["backendRefs"]}, sort_keys=False).splitlines()
    return lines


def as_html(plan: Plan, state: State) -> str:
    """The report as one page."""
    good = state.phase is Phase.DONE
    title = f"{plan.old.name} → {plan.new.name}: {state.phase.value}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p class='{'pass' if good else 'fail'}'>{escape(state.reason or 'Nothing failed.')}</p>",
        f"<p class=soft>{escape(str(plan.old))} was to be replaced by {escape(str(plan.new))}. "
        f"Began {_time(state.started)}, took {_seconds(state):.0f} s.</p>",
        "<h2>Share of the new pool</h2>",
        "<p class=soft>Blue: what the routes asked for. Orange: what was served while a gate measured.</p>",
        _shares(state),
    ]
    names = list(dict.fromkeys(check.name for result in state.history for check in result.checks))
    if names:
        parts.append("<h2>What the gates measured</h2><p class=soft>Grey: old pool, blue: new pool, by step.</p>")
        parts += [_bars(name, state.history) for name in names]
        parts += ["<h2>Gates</h2>", *(_gate(result) for result in state.history)]
    parts += ["<h2>Inventory</h2>", *(f"<p>{escape(line)}</p>" for line in inventory_change(plan, state))]
    parts += ["<h2>Log</h2>", "<table>"]
    parts += [f"<tr><td class=soft>{_time(entry.at)}<td>{escape(entry.message)}" for entry in state.log]
    parts += ["</table>", "<h2>Routes</h2>", "<table><tr><th>Route<th>Rule<th>Backends before"]
    for record in state.records:
        for rule in record.rules:
            refs = ", ".join(f"{ref.get('name')}={ref.get('weight', 1)}" for ref in rule.refs)
            parts.append(f"<tr><td>{escape(str(record))}<td>{rule.index}<td>{escape(refs)}")
    parts.append("</table>")
    if lines := commit_lines(plan, state):
        parts.append("<h2>Backends to commit</h2><p class=soft>For routes that are kept in Git, before it goes on.</p>")
        parts.append(f"<pre>{escape(chr(10).join(lines))}</pre>")
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>"
        f"<meta name=viewport content='width=device-width'><style>{_STYLE}</style>\n" + "\n".join(parts) + "\n</html>\n"
    )


def _gate(result: GateResult) -> str:
    rows = "".join(
        f"<tr><td>{escape(check.name)}<td>{_value(check, check.old)}<td>{_value(check, check.new)}"
        f"<td>{escape(check.limit)}<td>{'' if check.p_value is None else f'{check.p_value:.3g}'}"
        f"<td class={check.verdict}>{check.verdict}<td class=soft>{escape(check.detail)}"
        for check in result.checks
    )
    note = " The old pool was measured in an earlier window." if result.reference else ""
    return (
        f"<p><b>{result.percent} %</b> <span class={result.verdict}>{result.verdict}</span> <span class=soft>"
        f"{result.requests_old:.0f} requests at the old and {result.requests_new:.0f} at the new pool in "
        f"{result.seconds:.0f} s.{note}</span></p>"
        f"<table><tr><th>Check<th>Old<th>New<th>Limit<th>p<th>Verdict<th>{rows}</table>"
    )


def _shares(state: State) -> str:
    """Steps over time: the share of the new pool that the routes asked for, and the one that was served."""
    points: list[tuple[float, float]] = [(state.started, 0.0)]
    for entry in state.log:
        first = entry.message.split(" ", 1)[0]
        if entry.message.endswith("% go to the new pool") and first.isdigit():
            points.append((entry.at, float(first)))
        elif entry.message.startswith("every route has its backends"):
            points.append((entry.at, 0.0))
    end = max(state.finished, state.since, points[-1][0])
    span = max(end - state.started, 1.0)

    def x(at: float) -> float:
        return _LEFT + (at - state.started) / span * (_RIGHT - _LEFT)

    def y(percent: float) -> float:
        return (_HEIGHT - _BOTTOM) - percent / 100 * (_HEIGHT - _BOTTOM - 10)

    path = f"M{x(points[0][0]):.1f} {y(0):.1f}"
    for at, percent in points[1:]:
        path += f"H{x(at):.1f}V{y(percent):.1f}"
    path += f"H{x(end):.1f}"
    grid = "".join(
        f"<line class=axis x1={_LEFT} x2={_RIGHT} y1={y(percent):.1f} y2={y(percent):.1f} />"
        f"<text x={_LEFT - 8} y={y(percent) + 4:.1f} text-anchor=end>{percent} %</text>"
        for percent in (0, 25, 50, 75, 100)
    )
    served = ""
    for result in state.history:
        share = served_percent(result)
        if share is not None:
            of = f"{result.requests_new:.0f} of {result.requests_old + result.requests_new:.0f} requests"
            served += (
                f"<path class=served d='M{x(max(state.started, result.at - result.seconds)):.1f} {y(share):.1f}"
                f"H{x(min(end, result.at)):.1f}' fill=none stroke='var(--served)' stroke-width=4 stroke-opacity=.8>"
                f"<title>{result.percent} % wanted, {share:.1f} % served: {of}</title></path>"
            )
    return (
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role=img aria-label='share of the new pool over time'>{grid}"
        f"<path class=wanted d='{path}' fill=none stroke='var(--new)' stroke-width=2 />{served}"
        f"<text x={_LEFT} y={_HEIGHT - 6}>0 s</text>"
        f"<text x={_RIGHT} y={_HEIGHT - 6} text-anchor=end>{span:.0f} s</text></svg>"
    )


def served_percent(result: GateResult) -> float | None:
    """The share of the new pool in the requests that both served while a gate measured; None where none came."""
    total = result.requests_old + result.requests_new
    return 100 * result.requests_new / total if total > 0 else None


def _bars(name: str, history: Sequence[GateResult]) -> str:
    """Old against new at each gate."""
    found = [(result.percent, check) for result in history for check in result.checks if check.name == name]
    top = max((value for _, check in found for value in (check.old, check.new) if value is not None), default=0.0)
    if top <= 0:
        return f"<p><b>{escape(name)}</b> <span class=soft>0 throughout, or not measured.</span></p>"
    room = (_RIGHT - _LEFT) / len(found)
    width = min(34.0, room / 3)
    every = math.ceil(_LABEL / room)
    base, high = _HEIGHT - _BOTTOM, _HEIGHT - _BOTTOM - 16
    drawn = [f"<line class=axis x1={_LEFT} x2={_RIGHT} y1={base} y2={base} />"]
    drawn.append(f"<text x={_LEFT - 8} y={base - high + 4} text-anchor=end>{_value(found[0][1], top)}</text>")
    for at, (percent, check) in enumerate(found):
        middle = _LEFT + room * (at + 0.5)
        for value, offset, colour in ((check.old, -width, "old"), (check.new, 0.0, "new")):
            if value is not None:
                height = value / top * high
                paint = "bad" if colour == "new" and check.verdict == "fail" else colour
                drawn.append(
                    f"<rect x={middle + offset:.1f} y={base - height:.1f} width={width - 2:.1f} height={height:.1f} "
                    f"fill='var(--{paint})'><title>{colour}: {_value(check, value)}</title></rect>"
                )
        if at % every == 0:
            drawn.append(f"<text x={middle:.1f} y={_HEIGHT - 6} text-anchor=middle>{percent} %</text>")
    return (
        f"<p><b>{escape(name)}</b></p><svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role=img "
        f"aria-label='{escape(name)} of both pools by step'>{''.join(drawn)}</svg>"
    )


def _value(check: Check, value: float | None) -> str:
    if value is None:
        return "–"
    if "error" in check.name:
        return f"{100 * value:.2f} %"
    return f"{1000 * value:.1f} ms" if value < 1 else f"{value:.2f} s"


def _seconds(state: State) -> float:
    return max(0.0, (state.finished or state.since) - state.started)


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
