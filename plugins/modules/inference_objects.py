#!/usr/bin/python
# Copyright The Headrace authors
# Apache-2.0

"""List objects of several kinds in one call, by what identifies them and nothing of what they contain."""

from __future__ import annotations

# ruff: noqa: E402

DOCUMENTATION = r"""
module: inference_objects
short_description: List objects of several kinds in one call, without what they contain
version_added: "0.1.0"
description:
  - Asks the API server for the metadata alone, so that no content of a Secret comes here.
  - Kinds that the cluster does not serve have no objects.
author: The Headrace authors
options:
  queries:
    type: list
    elements: dict
    required: true
    description: What to look for.
    suboptions:
      api_version: {type: str, required: true, description: API version of the kind.}
      kind: {type: str, required: true, description: The kind.}
      namespace: {type: str, default: "", description: Namespace. Empty is all.}
      name: {type: str, default: "", description: Regular expression that the whole name must match. Empty is all.}
      labels: {type: list, elements: str, default: [], description: Label selectors that must all match.}
      tag: {type: str, default: "", description: What the objects found are marked with.}
  kubeconfig:
    type: path
    description: Path of a kubeconfig. Empty takes the environment's.
  context:
    type: str
    description: Context in the kubeconfig.
"""

EXAMPLES = r"""
- name: What carries a label
  headrace.inference.inference_objects:
    queries:
      - {api_version: apps/v1, kind: Deployment, labels: [app.kubernetes.io/part-of=headrace]}
      - {api_version: v1, kind: Secret, labels: [app.kubernetes.io/part-of=headrace]}
"""

RETURN = r"""
objects:
  description: >-
    What was found, each once, in the order of the queries; with C(tag), C(apiVersion), C(kind), C(name), C(namespace),
    C(labels), C(managers) (who wrote it), C(owned) (it goes with its owner) and C(ending) (it is being deleted).
  type: list
  elements: dict
  returned: always
"""

import json
import re
import traceback

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

try:
    import kubernetes
    from kubernetes.dynamic import DynamicClient
    from kubernetes.dynamic.exceptions import ResourceNotFoundError

    IMPORT_ERROR = None
except ImportError:
    IMPORT_ERROR = traceback.format_exc()

METADATA = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"


def described(query, item):
    """What is told of an object."""
    metadata = item["metadata"]
    return {
        "tag": query["tag"],
        "apiVersion": query["api_version"],
        "kind": query["kind"],
        "name": metadata["name"],
        "namespace": metadata.get("namespace", ""),
        "labels": metadata.get("labels") or {},
        "managers": sorted({field["manager"] for field in metadata.get("managedFields") or [] if "manager" in field}),
        "owned": bool(metadata.get("ownerReferences")),
        "ending": "deletionTimestamp" in metadata,
    }


def find(listed, queries):
    """Ask `listed` for each query's objects. An object that several queries find is told once, of the first."""
    found, seen = [], set()
    for query in queries:
        for item in listed(query):
            one = described(query, item)
            key = (one["apiVersion"], one["kind"], one["namespace"], one["name"])
            if key in seen or (query["name"] and not re.fullmatch(query["name"], one["name"])):
                continue
            seen.add(key)
            found.append(one)
    return found


class Cluster:
    """The API server's lists."""

    def __init__(self, kubeconfig, context):
        self.client = DynamicClient(kubernetes.config.new_client_from_config(kubeconfig, context))

    def listed(self, query):
        """The objects of a query, but for its name."""
        try:
            resource = self.client.resources.get(api_version=query["api_version"], kind=query["kind"])
        except ResourceNotFoundError:
            return []
        try:
            answer = self.client.request(
                "get",
                resource.path(namespace=query["namespace"] or None),
                query_params=[("labelSelector", ",".join(query["labels"]))] if query["labels"] else [],
                header_params={"Accept": METADATA},
                serialize=False,
            )
        except kubernetes.client.exceptions.ApiException as error:
            # What is served is remembered on this machine for a while; the kind's CRD may have gone since.
            if error.status == 404:
                return []
            raise
        # An empty list of metadata alone is null.
        return json.loads(answer.data)["items"] or []


def main():
    """Ansible's entry."""
    query = {
        "api_version": {"type": "str", "required": True},
        "kind": {"type": "str", "required": True},
        "namespace": {"type": "str", "default": ""},
        "name": {"type": "str", "default": ""},
        "labels": {"type": "list", "elements": "str", "default": []},
        "tag": {"type": "str", "default": ""},
    }
    module = AnsibleModule(
        argument_spec={
            "queries": {"type": "list", "elements": "dict", "required": True, "options": query},
            "kubeconfig": {"type": "path"},
            "context": {"type": "str"},
        },
        supports_check_mode=True,
    )
    if IMPORT_ERROR:
        module.fail_json(msg=missing_required_lib("kubernetes"), exception=IMPORT_ERROR)
    options = module.params
    try:
        cluster = Cluster(options["kubeconfig"] or None, options["context"] or None)
        found = find(cluster.listed, options["queries"])
    except re.error as error:
        module.fail_json(msg=f"queries: name: {error.pattern} is no regular expression: {error}")
    except kubernetes.config.ConfigException as error:
        module.fail_json(msg=f"kubeconfig: {error}. Fix: headrace_kubeconfig, headrace_context.")
    except kubernetes.client.exceptions.ApiException as error:
        module.fail_json(msg=f"The API server says {error.status} {error.reason}: {str(error.body)[:300]}")
    module.exit_json(changed=False, objects=found)


if __name__ == "__main__":
    main()
