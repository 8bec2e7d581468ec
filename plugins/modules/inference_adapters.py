#!/usr/bin/python
# Copyright The Headrace authors
# Apache-2.0

"""Load LoRA adapters into every replica of a group of model servers, unload others, or ask each for an answer."""

from __future__ import annotations

# ruff: noqa: E402

DOCUMENTATION = r"""
module: inference_adapters
short_description: Load and unload LoRA adapters on every replica of a group of model servers
version_added: "0.1.0"
description:
  - Asks every ready Pod, through the API server, which adapters it has. Loads and unloads what differs, by its own API.
  - One replica after the other. Where one refuses, or does not answer for an adapter of O(probe), everything that this
    run did is undone, and the run fails.
  - An adapter of the same name and another source is unloaded and loaded anew.
  - With O(probe) each replica must answer a completion for each of these adapters, once all are loaded.
  - Pods whose label says that they run another engine than vLLM are refused. SGLang has another API for adapters, and
    its base model answers for the name of one alone.
author: The Headrace authors
options:
  namespace:
    type: str
    description: Namespace of the Pods.
    default: default
  selector:
    type: dict
    description: Labels of the Pods.
    required: true
  port:
    type: int
    description: Port of the servers.
    default: 8000
  adapters:
    type: list
    elements: dict
    description: The adapters that should be there, and those that should not.
    default: []
    suboptions:
      name:
        type: str
        description: Name under which clients ask for it.
        required: true
      source:
        type: str
        description: Path or Hugging Face id. Needed unless it is to be unloaded.
      state:
        type: str
        description: Whether it should be there.
        choices: [present, absent]
        default: present
  probe:
    type: list
    elements: str
    description: Adapters that each replica must answer for.
    default: []
  minimum:
    type: int
    description: Fewest ready Pods; fewer fail the run.
    default: 1
  kubeconfig:
    type: path
    description: Path of a kubeconfig. Empty takes the environment's.
  context:
    type: str
    description: Context in the kubeconfig.
  timeout:
    type: int
    description: Seconds that one request may take; loading an adapter may mean to download it.
    default: 120
"""

EXAMPLES = r"""
- name: Load an adapter everywhere, and unload another
  headrace.inference.inference_adapters:
    namespace: llms
    selector: {app: vllm-llama3-8b-instruct}
    adapters:
      - {name: sql-v2, source: /adapters/sql-v2}
      - {name: sql-v1, state: absent}
"""

RETURN = r"""
actions:
  description: What was done, or would be, in order.
  type: list
  elements: dict
  returned: always
pods:
  description: The Pods that were looked at.
  type: list
  elements: str
  returned: always
"""

import json
import traceback

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

try:
    import kubernetes
    import urllib3
    from kubernetes.dynamic import DynamicClient

    IMPORT_ERROR = None
except ImportError:
    IMPORT_ERROR = traceback.format_exc()


# Pod labels that name the engine; the first one found counts. Without one it is vLLM.
ENGINE_LABELS = ("inference.networking.k8s.io/engine-type", "llm-d.ai/engine-type")


class Failed(Exception):  # noqa: N818
    """A server that does not do what it is asked for; the text says which, what it said and what to do."""


# ---- what differs, and what to do about it ---------------------------------------------------------------------------


def loaded(listing):
    """Name -> source of the adapters in an answer of /v1/models. Base models have no parent."""
    try:
        return {one["id"]: one.get("root") or "" for one in listing["data"] if one.get("parent")}
    except (KeyError, TypeError, AttributeError) as error:
        raise Failed(f"/v1/models is no list of models ({error!r}): {str(listing)[:200]}") from error


def plan(pod, has, adapters):
    """What to do on one replica: (do, undo) pairs of actions, in order."""

    def load(name, source):
        return {"pod": pod, "action": "load", "name": name, "source": source}

    def unload(name):
        return {"pod": pod, "action": "unload", "name": name}

    steps = []
    for adapter in adapters:
        name, source = adapter["name"], adapter.get("source") or ""
        there = name in has
        if adapter.get("state", "present") == "absent":
            if there:
                steps.append((unload(name), load(name, has[name])))
        elif not there:
            steps.append((load(name, source), unload(name)))
        elif has[name] and has[name] != source:
            steps.append((unload(name), load(name, has[name])))
            steps.append((load(name, source), unload(name)))
    return steps


def act(call, action):
    """Do one thing on one replica. Raises Failed unless the server then has what it should have."""
    body = {"lora_name": action["name"]}
    if action["action"] == "load":
        body["lora_path"] = action["source"]
    status, answer = call(action["pod"], "POST", f"/v1/{action['action']}_lora_adapter", body)
    # Somebody else, a sidecar or another run, may have been quicker.
    raced = (action["action"], status) in (("load", 400), ("unload", 404))
    if status != 200 and raced:
        there = action["name"] in loaded(ask(call, action["pod"]))
        if there == (action["action"] == "load"):
            return
    if status in (404, 405) and action["action"] == "load" and "adapter" not in str(answer).lower():
        raise Failed(
            f"Pod {action['pod']} has no API for adapters (status {status}). Fix: runtime_lora_updating true in its "
            "group of vllm_model_server_groups."
        )
    if status != 200:
        raise Failed(
            f"Pod {action['pod']} does not {action['action']} adapter {action['name']}: status {status}: "
            f"{str(answer)[:300]}"
        )


def ask(call, pod):
    """The answer of /v1/models."""
    status, answer = call(pod, "GET", "/v1/models", None)
    if status != 200:
        raise Failed(f"Pod {pod} does not tell its models: status {status}: {str(answer)[:300]}")
    return answer


def converge(call, pods, adapters, check, names=()):
    """Make every replica what it should be, and have it answer for the adapters `names`.

    Returns the actions; raises Failed once everything is undone.
    """
    steps = [step for pod in pods for step in plan(pod, loaded(ask(call, pod)), adapters)]
    if check:
        return [do for do, _ in steps]
    undo, made = [], 0
    try:
        for do, back in steps:
            # What fails may have been done all the same, such as a load that takes longer than is waited for it.
            undo.append(back)
            act(call, do)
            made += 1
        for pod in pods:
            has = loaded(ask(call, pod))
            for adapter in adapters:
                if (adapter["name"] in has) != (adapter.get("state", "present") == "present"):
                    raise Failed(f"Pod {pod} is not as it was made: adapter {adapter['name']}.")
        probe(call, pods, names)
    except Failed as error:
        left = []
        for back in reversed(undo):
            try:
                act(call, back)
            except Failed as again:
                left.append(str(again))
        if not undo:
            raise
        result = "Not all could be undone: " + " ".join(left) if left else f"{made} changes of this run were undone."
        raise Failed(f"{error} {result}") from error
    return [do for do, _ in steps]


def probe(call, pods, names):
    """Every replica answers for every adapter. Raises Failed at the first that does not."""
    for pod in pods:
        for name in names:
            body = {"model": name, "prompt": "Hello", "max_tokens": 1}
            status, answer = call(pod, "POST", "/v1/completions", body)
            if status != 200:
                raise Failed(f"Pod {pod} does not answer for adapter {name}: status {status}: {str(answer)[:300]}")
            if not isinstance(answer, dict) or answer.get("model") != name or not answer.get("choices"):
                raise Failed(f"Pod {pod} answers for adapter {name} with no completion of it: {str(answer)[:300]}")


# ---- the cluster -----------------------------------------------------------------------------------------------------


class Cluster:
    """Pods, and what they answer through the API server."""

    def __init__(self, kubeconfig, context, namespace, port, timeout):
        self.client = DynamicClient(kubernetes.config.new_client_from_config(kubeconfig, context))
        self.namespace, self.port, self.timeout = namespace, port, timeout

    def pods(self, selector):
        """Names of the Pods that are ready and stay."""
        labels = ",".join("{}={}".format(*item) for item in sorted(selector.items()))
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        answer = self.client.request("get", path, query_params=[("labelSelector", labels)], serialize=False)
        found = [pod for pod in json.loads(answer.data)["items"] if serves(pod)]
        refuse_other_engines(found)
        return sorted(pod["metadata"]["name"] for pod in found)

    def call(self, pod, method, path, body):
        """(status, JSON or text) of a request to a Pod."""
        where = f"/api/v1/namespaces/{self.namespace}/pods/{pod}:{self.port}/proxy{path}"
        try:
            answer = self.client.request(
                method.lower(), where, body=body, serialize=False, _request_timeout=self.timeout
            )
            status, data = 200, answer.data
        except kubernetes.client.exceptions.ApiException as error:
            status, data = error.status, error.body or ""
        except urllib3.exceptions.HTTPError as error:
            return 0, f"no answer within {self.timeout} s: {error}"
        text = data.decode("utf-8", "replace") if isinstance(data, bytes) else str(data)
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text


def serves(pod):
    """Whether a Pod is ready and not about to end."""
    conditions = {one["type"]: one["status"] for one in pod.get("status", {}).get("conditions") or []}
    return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]


def refuse_other_engines(pods):
    """Raises Failed for a Pod that says it runs another engine than vLLM."""
    for pod in pods:
        labels = pod["metadata"].get("labels") or {}
        engine = next((labels[label] for label in ENGINE_LABELS if label in labels), "vllm")
        if engine != "vllm":
            raise Failed(
                f"Pod {pod['metadata']['name']} runs engine {engine}, into which this loads no adapters at run time. "
                "Fix: name them in adapters of its group of vllm_model_server_groups, or take engine vllm."
            )


def main():
    """Ansible's entry."""
    adapter = {
        "name": {"type": "str", "required": True},
        "source": {"type": "str"},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    }
    module = AnsibleModule(
        argument_spec={
            "namespace": {"type": "str", "default": "default"},
            "selector": {"type": "dict", "required": True},
            "port": {"type": "int", "default": 8000},
            "adapters": {"type": "list", "elements": "dict", "default": [], "options": adapter},
            "probe": {"type": "list", "elements": "str", "default": []},
            "minimum": {"type": "int", "default": 1},
            "kubeconfig": {"type": "path"},
            "context": {"type": "str"},
            "timeout": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    if IMPORT_ERROR:
        module.fail_json(msg=missing_required_lib("kubernetes"), exception=IMPORT_ERROR)
    options = module.params
    for one in options["adapters"]:
        if one["state"] == "present" and not one["source"]:
            module.fail_json(msg=f"adapters: {one['name']} has no source. Fix: the path or Hugging Face id of it.")
    try:
        cluster = Cluster(
            options["kubeconfig"] or None,
            options["context"] or None,
            options["namespace"],
            options["port"],
            options["timeout"],
        )
        pods = cluster.pods(options["selector"])
        if len(pods) < options["minimum"] and module.check_mode:
            module.exit_json(
                changed=False, actions=[], pods=pods, msg=f"{len(pods)} Pods are ready: nothing to compare."
            )
        if len(pods) < options["minimum"]:
            raise Failed(
                f"{len(pods)} ready Pods in namespace {options['namespace']} have the labels {options['selector']}, "
                f"and {options['minimum']} are needed. Fix: selector, or wait until the model servers are ready."
            )
        actions = converge(cluster.call, pods, options["adapters"], module.check_mode, options["probe"])
    except Failed as error:
        module.fail_json(msg=str(error))
    except kubernetes.config.ConfigException as error:
        module.fail_json(msg=f"kubeconfig: {error}. Fix: headrace_kubeconfig, headrace_context.")
    except kubernetes.client.exceptions.ApiException as error:
        module.fail_json(msg=f"The API server says {error.status} {error.reason}: {str(error.body)[:300]}")
    module.exit_json(changed=bool(actions), actions=actions, pods=pods)


if __name__ == "__main__":
    main()
