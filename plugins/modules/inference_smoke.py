#!/usr/bin/python
# Copyright The Headrace authors
# Apache-2.0

"""Send completions through a Gateway and say which Pod served each, and why."""

from __future__ import annotations

# ruff: noqa: E402

DOCUMENTATION = r"""
module: inference_smoke
short_description: Send completions through a Gateway and say which Pod served each, and why
version_added: "0.1.0"
description:
  - Asks every route to a pool for completions and chats, streaming and not, of the base model and of an adapter.
  - Fails unless each answer has status 200, a body of the right model, and came from a Pod of the pool.
  - Reads from the endpoint picker why it picked that Pod, through the API server.
author: The Headrace authors
options:
  url:
    type: str
    description: Where requests go, as C(http://HOST:PORT). Empty takes the address in the status of the first Gateway.
    default: ""
  gateways:
    type: list
    elements: dict
    description: The Gateways, as role inference_gateway takes them.
    default: []
  routes:
    type: list
    elements: dict
    description: The routes, as role inference_gateway takes them.
    required: true
  pools:
    type: list
    elements: dict
    description: The pools, as role inference_pool takes them.
    required: true
  model_servers:
    type: list
    elements: dict
    description: The model servers, as role vllm_model_server takes them.
    required: true
  namespace:
    type: str
    description: Namespace of entries that name none.
    default: default
  kubeconfig:
    type: path
    description: Path of the kubeconfig.
  context:
    type: str
    description: Context in it.
  max_tokens:
    type: int
    description: Tokens to ask for in each request.
    default: 16
  ready_timeout:
    type: int
    description: Seconds to wait until a route answers at all.
    default: 60
  request_timeout:
    type: int
    description: Seconds one request may take.
    default: 60
"""

EXAMPLES = r"""
- name: Send completions
  headrace.inference.inference_smoke:
    routes: "{{ inference_gateway_routes }}"
    gateways: "{{ inference_gateway_gateways }}"
    pools: "{{ inference_pool_pools }}"
    model_servers: "{{ vllm_model_server_groups }}"
"""

RETURN = r"""
table:
  description: Lines of a table for people, one request a line.
  type: list
  elements: str
  returned: always
requests:
  description: What was sent and what came back.
  type: list
  elements: dict
  returned: always
"""

import http.client
import json
import ssl
import time
import traceback
import urllib.parse
import uuid

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

try:
    import kubernetes
    from kubernetes.dynamic import DynamicClient

    IMPORT_ERROR = None
except ImportError:
    IMPORT_ERROR = traceback.format_exc()

GROUPS = {"v1": "inference.networking.k8s.io", "v1alpha2": "inference.networking.x-k8s.io"}
PROMPT = "Say in one sentence what a headrace is."


class Failed(Exception):  # noqa: N818
    """An answer that is not what it should be; the text says what came, what should have, and what to do next."""


# ---- what to ask -----------------------------------------------------------------------------------------------------


def targets(routes, pools, model_servers, namespace="default"):
    """Per route to a pool: its path, the pool, and its model servers, where the inventory has them."""
    by_key = {(pool.get("namespace", namespace), pool.get("api_version", "v1"), pool["name"]): pool for pool in pools}
    found = []
    for route in routes:
        for rule in route["rules"]:
            for backend in rule["backends"]:
                key = (
                    backend.get("namespace", route.get("namespace", namespace)),
                    backend.get("api_version", "v1"),
                    backend.get("pool"),
                )
                pool = by_key.get(key)
                if pool is None or backend.get("weight", 1) == 0 or rule.get("headers"):
                    continue
                groups = [
                    group
                    for group in model_servers
                    if _selects(pool.get("selector") or {}, group) and group.get("namespace", namespace) == key[0]
                ]
                if groups:
                    hosts = route.get("hostnames") or [""]
                    path = rule.get("path", "/").rstrip("/")
                    found.append(
                        {
                            "path": path,
                            "host": hosts[0],
                            "namespace": key[0],
                            "pool": pool,
                            "groups": groups,
                            "alone": len(rule["backends"]) == 1,
                        }
                    )
    return found


def _selects(selector, group):
    return bool(selector) and selector.items() <= (group.get("labels") or {"app": group["name"]}).items()


def questions(target):
    """What is asked of one target: (endpoint, model, stream)."""
    group = target["groups"][0]
    models = [
        (group.get("served_model_names") or [group["model"]])[0],
        *[adapter["name"] for adapter in group.get("adapters") or []][:1],
    ]
    asked = []
    for model in models:
        asked += [("/v1/completions", model, False), ("/v1/completions", model, True)]
    return [*asked, ("/v1/chat/completions", models[0], False), ("/v1/chat/completions", models[0], True)]


# ---- asking ----------------------------------------------------------------------------------------------------------


def connect(url, timeout):
    """A connection to the Gateway. TLS is not verified: its names may not resolve here."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Failed(f"url '{url}' is no http:// or https:// address. Fix: set headrace_gateway_url to one.")
    if parts.scheme == "https":
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return http.client.HTTPSConnection(parts.hostname, parts.port or 443, timeout=timeout, context=context)
    return http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=timeout)


def ask(url, target, endpoint, model, stream, max_tokens, timeout):
    """Send one request; seconds to the first token (whole answers: to the answer) and to the end."""
    content = {"messages": [{"role": "user", "content": PROMPT}]} if "chat" in endpoint else {"prompt": PROMPT}
    body = json.dumps(dict(content, model=model, max_tokens=max_tokens, stream=stream))
    request_id = str(uuid.uuid4())
    headers = {"content-type": "application/json", "x-request-id": request_id}
    if target["host"]:
        headers["host"] = target["host"]
    connection = connect(url, timeout)
    started = time.monotonic()
    first = None
    lines = []
    try:
        connection.request("POST", target["path"] + endpoint, body, headers)
        response = connection.getresponse()
        for line in iter(response.readline, b""):
            if first is None and (not stream or line.startswith(b"data:")):
                first = time.monotonic() - started
            lines.append(line)
    except OSError as error:
        raise Failed(
            "{}{} at {}: {}. Next: kubectl get gateway,service -A, and the Envoy's logs.".format(
                target["path"], endpoint, url, error
            )
        ) from error
    finally:
        connection.close()
    return {
        # An Envoy at the edge gives requests ids of its own; servers that echo the header tell which.
        "request_id": response.getheader("x-request-id") or request_id,
        "endpoint": target["path"] + endpoint,
        "sent_path": endpoint,
        "model": model,
        "stream": stream,
        "status": response.status,
        "pod": response.getheader("x-headrace-pod", ""),
        "body": b"".join(lines).decode("utf-8", "replace"),
        "content_type": response.getheader("content-type", ""),
        "ttft": first,
        "seconds": time.monotonic() - started,
    }


def text_of(answer):
    """The text of an answer and the model that it names. Raises Failed for anything that is no completion."""
    what = "{} of {}{}".format(answer["endpoint"], answer["model"], ", streamed" if answer["stream"] else "")
    if answer["status"] != 200:
        raise Failed(f"{what}: status {answer['status']}, not 200: {answer['body'][:500].strip()}")
    try:
        if not answer["stream"]:
            parts = [json.loads(answer["body"])]
        else:
            if not answer["content_type"].startswith("text/event-stream"):
                raise Failed("{}: content-type {}, not text/event-stream".format(what, answer["content_type"]))
            events = [line[5:].strip() for line in answer["body"].splitlines() if line.startswith("data:")]
            if not events or events[-1] != "[DONE]":
                raise Failed(f"{what}: {len(events)} events, the last is not [DONE]: the answer was cut")
            parts = [json.loads(event) for event in events[:-1]]
        choices = [choice for part in parts for choice in part["choices"]]
        text = "".join(
            (choice.get("text") or (choice.get("message") or choice.get("delta") or {}).get("content") or "")
            for choice in choices
        )
        model = parts[0].get("model", "")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise Failed("{}: no completion ({!r}): {}".format(what, error, answer["body"][:500])) from error
    if not text.strip():
        raise Failed("{}: the completion is empty: {}".format(what, answer["body"][:500]))
    if model != answer["model"]:
        raise Failed(f"{what}: the answer is of model '{model}'")
    return text, model


# ---- the cluster -----------------------------------------------------------------------------------------------------


class Cluster:
    """What the smoke test reads of the cluster."""

    def __init__(self, kubeconfig, context):
        self.client = DynamicClient(kubernetes.config.new_client_from_config(kubeconfig, context))

    def get(self, path, **query):
        """A GET of the API server's, as JSON. Raises kubernetes' ApiException."""
        answer = self.client.request("get", path, query_params=list(query.items()), serialize=False)
        return json.loads(answer.data)

    def pods(self, namespace, labels):
        """Names of the Pods that carry the labels."""
        selector = ",".join("{}={}".format(*item) for item in sorted(labels.items()))
        return [
            pod["metadata"]["name"]
            for pod in self.get(f"/api/v1/namespaces/{namespace}/pods", labelSelector=selector)["items"]
        ]

    def decision(self, namespace, picker, answer):
        """The endpoint picker's record of a request, from whichever replica has it; None if none tells.

        Where the server does not echo the request's id, it is the newest record of that model and path.
        """
        for pod in self.pods(namespace, {"app.kubernetes.io/name": picker}):
            path = f"/api/v1/namespaces/{namespace}/pods/{pod}:9090/proxy/debug/decisions"
            try:
                found = self.get(path, request_id=answer["request_id"])["decisions"]
                if not found and not answer["pod"]:
                    newest = self.get(path, limit=1)["decisions"]
                    found = [
                        one for one in newest if one["model"] == answer["model"] and one["path"] == answer["sent_path"]
                    ]
            except (kubernetes.client.exceptions.ApiException, KeyError, ValueError):
                continue
            if found:
                return found[0]
        return None

    def gateway_url(self, gateways, namespace):
        """Address of the first Gateway's first listener."""
        if not gateways:
            raise Failed(
                "There is no Gateway in inference_gateway_gateways. Fix: define one, or set headrace_gateway_url."
            )
        gateway = gateways[0]
        where = gateway.get("namespace", namespace)
        found = self.get("/apis/gateway.networking.k8s.io/v1/namespaces/{}/gateways/{}".format(where, gateway["name"]))
        addresses = found.get("status", {}).get("addresses") or []
        if not addresses:
            raise Failed(
                "Gateway {}/{} has no address. Next: kubectl -n {} describe gateway {}.".format(
                    where, gateway["name"], where, gateway["name"]
                )
            )
        listener = gateway["listeners"][0]
        scheme = "https" if listener.get("protocol", "HTTP") == "HTTPS" else "http"
        return "{}://{}:{}".format(scheme, addresses[0]["value"], listener["port"])


def await_answer(url, target, timeout):
    """Wait until the route answers at all: endpoints reach Envoy a moment after everything else is ready."""
    deadline = time.monotonic() + timeout
    seen = "nothing"
    while time.monotonic() < deadline:
        connection = connect(url, 5)
        try:
            connection.request(
                "GET", target["path"] + "/v1/models", headers={"host": target["host"]} if target["host"] else {}
            )
            response = connection.getresponse()
            seen = f"status {response.status}: {response.read()[:200].decode('utf-8', 'replace')}"
            if response.status == 200:
                return
        except (OSError, http.client.HTTPException) as error:
            seen = str(error)
        finally:
            connection.close()
        time.sleep(0.5)
    raise Failed(
        f"{url}{target['path']}/v1/models gave {seen} for {timeout} s. Next: kubectl get httproute,inferencepool -A "
        "-o yaml (their status), the endpoint picker's logs and the Envoy's."
    )


def run(url, cluster, wanted, max_tokens, timeout):
    """Ask everything of every target. Returns the answers; raises Failed at the first wrong one."""
    answers = []
    for target in wanted:
        pool = target["pool"]
        members = cluster.pods(target["namespace"], pool["selector"])
        for endpoint, model, stream in questions(target):
            answer = ask(url, target, endpoint, model, stream, max_tokens, timeout)
            answer["text"] = text_of(answer)[0]
            decision = cluster.decision(target["namespace"], pool["picker"], answer)
            pod = answer["pod"] or (decision or {}).get("winner_pod") or ""
            if target["alone"] and pod not in members:
                raise Failed(
                    "{} of {} was served by '{}', which is not in pool {} ({})".format(
                        answer["endpoint"], model, pod, pool["name"], ", ".join(sorted(members))
                    )
                )
            if decision and answer["pod"] and decision["winner_pod"] != answer["pod"]:
                raise Failed(
                    "{} of {}: picked was {}, but {} served it".format(
                        answer["endpoint"], model, decision["winner_pod"], answer["pod"]
                    )
                )
            answer.update(
                pod=pod, pool=pool["name"], why=(decision or {}).get("reason") or "its endpoint picker does not say"
            )
            del answer["body"]
            answers.append(answer)
    return answers


def table(answers):
    """The answers as lines of equal columns."""
    rows = [("POOL", "REQUEST", "MODEL", "POD", "TTFT", "TOTAL", "WHY")]
    for answer in answers:
        request = answer["endpoint"] + (" (stream)" if answer["stream"] else "")
        ttft = "%.0f ms" % (1000 * answer["ttft"]) if answer["stream"] and answer["ttft"] is not None else "-"
        rows.append(
            (
                answer["pool"],
                request,
                answer["model"],
                answer["pod"],
                ttft,
                "%.0f ms" % (1000 * answer["seconds"]),
                answer["why"],
            )
        )
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]) - 1)] + [0]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]


def main():
    """Ansible's entry."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "default": ""},
            "gateways": {"type": "list", "elements": "dict", "default": []},
            "routes": {"type": "list", "elements": "dict", "required": True},
            "pools": {"type": "list", "elements": "dict", "required": True},
            "model_servers": {"type": "list", "elements": "dict", "required": True},
            "namespace": {"type": "str", "default": "default"},
            "kubeconfig": {"type": "path"},
            "context": {"type": "str"},
            "max_tokens": {"type": "int", "default": 16},
            "ready_timeout": {"type": "int", "default": 60},
            "request_timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    if IMPORT_ERROR:
        module.fail_json(msg=missing_required_lib("kubernetes"), exception=IMPORT_ERROR)
    options = module.params
    wanted = targets(options["routes"], options["pools"], options["model_servers"], options["namespace"])
    if module.check_mode:
        module.exit_json(changed=False, table=[f"{len(wanted)} routes would be asked"], requests=[])
    try:
        if not wanted:
            raise Failed(
                "No route leads to a pool with model servers of the inventory. Fix: "
                "inference_gateway_routes, inference_pool_pools."
            )
        cluster = Cluster(options["kubeconfig"] or None, options["context"] or None)
        url = (options["url"] or cluster.gateway_url(options["gateways"], options["namespace"])).rstrip("/")
        for target in wanted:
            await_answer(url, target, options["ready_timeout"])
        answers = run(url, cluster, wanted, options["max_tokens"], options["request_timeout"])
    except Failed as error:
        module.fail_json(msg=str(error))
    except kubernetes.config.ConfigException as error:
        module.fail_json(msg=f"kubeconfig: {error}. Fix: headrace_kubeconfig, headrace_context.")
    except kubernetes.client.exceptions.ApiException as error:
        module.fail_json(msg=f"The API server says {error.status} {error.reason}: {str(error.body)[:300]}")
    except http.client.HTTPException as error:
        module.fail_json(msg=f"The Gateway broke off its answer: {error!r}. Next: the Envoy's logs.")
    module.exit_json(changed=False, url=url, table=table(answers), requests=answers)


if __name__ == "__main__":
    main()
