# What users read of the action plugin plugins/action/gpu_node_pool_plan.py, which does the work.

DOCUMENTATION = r"""
module: gpu_node_pool_plan
short_description: Say what GPU node pools take of a cloud
version_added: "0.1.0"
description:
  - Turns the pools of role gpu_node_pool into the arguments of the provider's own module. Asks no cloud.
  - Fails with all problems at once, each with the key and the fix, where a provider cannot do what a pool asks for.
author: The Headrace authors
options:
  provider:
    type: str
    choices: [existing, gke, eks, aks]
    required: true
    description: Who provides the nodes.
  pools:
    type: list
    elements: dict
    required: true
    description: The pools, as role gpu_node_pool takes them.
  cluster:
    type: str
    description: Name of the cluster at the provider.
  settings:
    type: dict
    description: What the provider's module must know of the account, as role gpu_node_pool takes it.
  found:
    type: list
    elements: dict
    description:
      - What the cloud has. With C(gke) the resources of google.cloud.gcp_container_node_pool_info; with C(eks) and
        C(aks) the results of a loop over C(calls), of community.aws.eks_nodegroup in check mode and of
        azure.azcollection.azure_rm_aksagentpool_info.
      - With it C(calls) are those that are left to do. What the provider's module would leave as it is without a word
        is a problem.
"""

EXAMPLES = r"""
- name: What would be made
  headrace.inference.gpu_node_pool_plan:
    provider: gke
    cluster: llm
    settings: {project: my-project, location: europe-west4}
    pools:
      - {name: l4, accelerator: nvidia-l4, instance_type: g2-standard-8, count: 2}
"""

RETURN = r"""
calls:
  description: Each pool's name and the arguments of the provider's module. Empty with provider existing.
  type: list
  elements: dict
  returned: success
summary:
  description: A line about each pool.
  type: list
  elements: str
  returned: success
problems:
  description: What cannot be done, one sentence each.
  type: list
  elements: str
  returned: failure
"""
