"""Make the rules of HTTPRoutes of the entries that role inference_gateway takes.

A rule that leads to a pool carries inference paths only, unless it says otherwise: model servers have paths for whoever
runs them on the same port (adapters, sleep, metrics), and a client must not reach those through the Gateway.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ansible.plugins.action import ActionBase

GROUPS = {"v1": "inference.networking.k8s.io", "v1alpha2": "inference.networking.x-k8s.io"}
# What vLLM, SGLang and TensorRT-LLM answer inference requests under; prefixes by path segments.
INFERENCE = (
    "/v1/chat", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings", "/v1/models", "/v1/audio",
    "/v1/realtime", "/v1/score", "/v1/rerank", "/v2/rerank", "/score", "/rerank", "/pooling", "/classify", "/tokenize",
    "/detokenize", "/generate", "/inference/v1/generate",
)  # fmt: skip
# Where the prefix is replaced, each path needs a rule of its own, and a route has room for few. So these are carried...
REWRITTEN = ("/v1", "/tokenize", "/detokenize")
# ... and what is no inference below them is answered by a rule without backends.
REFUSED = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")


def below(path: str, prefix: str) -> bool:
    """Whether a path is the prefix or below it, by segments."""
    return f"{path}/".startswith(f"{prefix}/")


def join(prefix: str, path: str) -> str:
    """A path below a prefix; `/` for neither."""
    return f"{prefix}{path}" or "/"


def carried(path: str) -> list[str]:
    """The inference paths that a rule for this prefix (no slash at its end) stands for."""
    if inside := [known for known in INFERENCE if below(known, path)]:
        return inside
    if any(below(path, known) for known in INFERENCE):
        return [path]
    return [f"{path}{known}" for known in INFERENCE]


def rewritten(path: str, target: str) -> tuple[list[tuple[str, str]], list[str]]:
    """(prefix, what replaces it) for each rule, and the prefixes that are refused, where `target` replaces `path`."""
    if any(below(target, known) for known in INFERENCE):
        return [(path, target)], []
    base = target.removesuffix("/v1")
    end = target[len(base) :]
    pairs = [(path, target)] if end else [(f"{path}{known}", f"{base}{known}") for known in REWRITTEN]
    return pairs, [f"{path}{known.removeprefix(end)}" for known in REFUSED]


def backend_ref(backend: Mapping[str, Any]) -> dict[str, Any]:
    """The backendRef of a backend: a pool, or a Service."""
    if "pool" in backend:
        group = GROUPS[backend.get("api_version") or "v1"]
        found: dict[str, Any] = {"group": group, "kind": "InferencePool", "name": backend["pool"]}
    else:
        found = {"group": "", "kind": "Service", "name": backend["service"], "port": int(backend["port"])}
    if "namespace" in backend:
        found["namespace"] = backend["namespace"]
    if "weight" in backend:
        found["weight"] = int(backend["weight"])
    return found


def rules(entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The HTTPRoute's rules of one entry of a route's `rules`."""
    kind, path = entry.get("path_type") or "PathPrefix", entry.get("path") or "/"
    target = entry.get("rewrite_prefix")
    headers = {"headers": entry["headers"]} if entry.get("headers") else {}
    rest: dict[str, Any] = {"timeouts": {"request": entry["timeout"]}} if entry.get("timeout") else {}
    rest["backendRefs"] = [backend_ref(backend) for backend in entry["backends"]]

    def matches(paths: Iterable[str]) -> list[dict[str, Any]]:
        return [{"path": {"type": kind, "value": value}, **headers} for value in paths]

    def rewrite(replacement: str) -> dict[str, Any]:
        change = {"type": "ReplacePrefixMatch", "replacePrefixMatch": replacement}
        return {"filters": [{"type": "URLRewrite", "urlRewrite": {"path": change}}]}

    to_pool = any("pool" in backend for backend in entry["backends"])
    if kind != "PathPrefix" or entry.get("all_paths") or not to_pool:
        yield {"matches": matches([path]), **(rewrite(target) if target is not None else {}), **rest}
        return
    path = path.rstrip("/")
    if target is None:
        yield {"matches": matches(carried(path)), **rest}
        return
    pairs, refused = rewritten(path, target.rstrip("/"))
    for prefix, replacement in pairs:
        yield {"matches": matches([join(prefix, "")]), **rewrite(join(replacement, "")), **rest}
    if refused:
        yield {"matches": matches(refused)}


# Gateway API's limits of an HTTPRoute.
MOST_RULES, MOST_MATCHES = 16, 128


def problem(name: str, made: list[dict[str, Any]]) -> str:
    """Why a route cannot have these rules; "" if it can."""
    matches = sum(len(rule["matches"]) for rule in made)
    if len(made) <= MOST_RULES and matches <= MOST_MATCHES:
        return ""
    return (
        f"inference_gateway_routes: route {name} comes to {len(made)} rules with {matches} matches, and an HTTPRoute "
        f"has room for {MOST_RULES} and {MOST_MATCHES}: a rule to a pool names each inference path. Fix: make two "
        "routes of it, give rules the path that they are about (/v1/chat/completions), or set all_paths on them."
    )


class ActionModule(ActionBase):
    """See plugins/modules/inference_route_rules.py for what users read."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """The routes, with the HTTPRoutes' rules in place of their entries."""
        result = super().run(tmp, task_vars)
        routes = [
            {**route, "rules": [made for entry in route["rules"] for made in rules(entry)]}
            for route in self._task.args["routes"]
        ]
        problems = [found for route in routes if (found := problem(route["name"], route["rules"]))]
        if problems:
            return {**result, "failed": True, "msg": "\n".join(problems)}
        return {**result, "changed": False, "routes": routes}
