# What users read of the action plugin plugins/action/inference_route_rules.py, which does the work.

DOCUMENTATION = r"""
module: inference_route_rules
short_description: Make the rules of HTTPRoutes
version_added: "0.1.0"
description:
  - Turns the routes of role inference_gateway into the rules of HTTPRoutes. Asks no cluster.
  - A rule that leads to a pool carries inference paths only, unless it has C(all_paths).
author: The Headrace authors
options:
  routes:
    type: list
    elements: dict
    required: true
    description: The routes, as role inference_gateway takes them.
"""

EXAMPLES = r"""
- name: What a route carries
  headrace.inference.inference_route_rules:
    routes:
      - {name: llama, gateway: inference-gateway, rules: [{path: /, backends: [{pool: llama}]}]}
"""

RETURN = r"""
routes:
  description: The routes, C(rules) as an HTTPRoute has them.
  type: list
  elements: dict
  returned: success
"""
