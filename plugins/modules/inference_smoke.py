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
import traceback

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from ..module_utils.smoke import Failed, ask, await_answer, questions, table, targets, text_of

try:
    import kubernetes
    from kubernetes.dynamic import DynamicClient

    IMPORT_ERROR = None
except ImportError:
    IMPORT_ERROR = traceback.format_exc()

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


def run(url, cluster, wanted, max_tokens, timeout):
    """Ask everything of every target. Returns the answers; raises Failed at the first wrong one."""
    answers = []
    for target in wanted:
        pool = target["pool"]
        members = cluster.pods(target["namespace"], pool["selector"])
        for endpoint, model, stream in questions(target):
            answer = ask(url, target, endpoint, model, stream, max_tokens, timeout)
            answer["text"] = text_of(answer)
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
