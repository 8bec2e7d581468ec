# What users read of the action plugin plugins/action/inference_crds_plan.py, which does the work.

DOCUMENTATION = r"""
module: inference_crds_plan
short_description: Decide which CRDs to install over those that a cluster has
version_added: "0.1.0"
description:
  - Compares the versions and channels that CRDs carry as annotations, of the Gateway API and of inference pools, and
    leaves out what is older than, or of another channel than, what the cluster has. Changes nothing.
  - Fails where what the cluster has lacks something that Headrace needs.
author: The Headrace authors
options:
  sources:
    type: dict
    required: true
    description: >-
      The CRDs to install: the variable that names a source, and its value, a file, a folder or an http(s) URL. Empty
      ones are left out.
  found:
    type: list
    elements: dict
    required: true
    description: The CRDs and the admission policies that the cluster has.
"""

EXAMPLES = r"""
- name: What to install
  headrace.inference.inference_crds_plan:
    sources:
      inference_crds_gateway_api_source: /srv/gateway-api.yaml
    found: "{{ crds.resources + policies.resources }}"
"""

RETURN = r"""
install:
  description: What to install, with C(label) and either C(src), a file or URL, or C(definition), objects.
  type: list
  elements: dict
  returned: success
lines:
  description: What is done and why, a line for each bundle and each inference CRD.
  type: list
  elements: str
  returned: success
problems:
  description: What is wrong, one sentence each.
  type: list
  elements: str
  returned: failure
"""
