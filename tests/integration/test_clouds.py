"""Role gpu_node_pool with providers gke and aks: its tasks, with modules of the test's own in place of the clouds'.

They keep the pools in a file, and do what the sources of the real ones say: GKE's changes no pool that exists and has
no check mode; AKS' says in check mode that it deletes whatever it is told to, and compares number and taints. No cloud
is called.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .roles import Run, play

START = """
import json, os
from ansible.module_utils.basic import AnsibleModule
PATH = os.environ["HEADRACE_TEST_CLOUD"]
with open(PATH) as file:
    pools = json.load(file)
def any_of(*names):
    return {name: dict(type="raw") for name in names}
def save():
    with open(PATH, "w") as file:
        json.dump(pools, file)
"""
MODULES = {
    "google/cloud/plugins/modules/gcp_container_node_pool_info.py": """
module = AnsibleModule(any_of("cluster", "project", "location", "auth_kind"), supports_check_mode=True)
module.exit_json(resources=list(pools.values()))
""",
    "google/cloud/plugins/modules/gcp_container_node_pool.py": """
names = "name cluster project location auth_kind initial_node_count config autoscaling management state".split()
module = AnsibleModule(any_of(*names))
given = module.params
there = given["name"] in pools
if given["state"] == "absent":
    pools.pop(given["name"], None)
elif not there:
    config = given["config"]
    pools[given["name"]] = {
        "name": given["name"],
        "initialNodeCount": int(given["initial_node_count"]),
        "config": {
            "machineType": config["machine_type"],
            "labels": config["labels"],
            "accelerators": [
                {"acceleratorType": one["accelerator_type"], "acceleratorCount": str(one["accelerator_count"])}
                for one in config["accelerators"]
            ],
            "taints": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NO_SCHEDULE"}],
        },
    }
save()
module.exit_json(changed=there == (given["state"] == "absent"))
""",
    "azure/azcollection/plugins/modules/azure_rm_aksagentpool_info.py": """
module = AnsibleModule(any_of("name", "cluster_name", "resource_group"), supports_check_mode=True)
module.exit_json(aks_agent_pools=[pools.get(module.params["name"])])
""",
    "azure/azcollection/plugins/modules/azure_rm_aksagentpool.py": """
names = (
    "name cluster_name resource_group vm_size count min_count max_count enable_auto_scaling mode os_type state"
    " type_properties_type node_labels node_taints scale_set_priority scale_set_eviction_policy spot_max_price"
).split()
module = AnsibleModule(any_of(*names), supports_check_mode=True)
given = module.params
has = pools.get(given["name"])
if given["state"] == "absent":
    changed = module.check_mode or has is not None
    wanted = None
else:
    spot = ["kubernetes.azure.com/scalesetpriority=spot:NoSchedule"] if given["scale_set_priority"] == "Spot" else []
    taints = given["node_taints"] or []
    wanted = {"name": given["name"], "count": int(given["count"]), "node_taints": sorted({*taints, *spot})}
    changed = has is None or has["count"] != wanted["count"] or sorted(taints) != has["node_taints"]
if changed and not module.check_mode:
    pools[given["name"]] = wanted
    save()
module.exit_json(changed=changed)
""",
}
PROVIDERS: dict[str, dict[str, Any]] = {
    "gke": {"gpu_node_pool_gke": {"project": "llms", "location": "europe-west4", "auth_kind": "application"}},
    "aks": {"gpu_node_pool_aks": {"resource_group": "llms"}},
}


class Cloud:
    """A provider, its pools, and the role run against it."""

    def __init__(self, provider: str, folder: Path) -> None:
        self.provider, self.folder, self.path = provider, folder, folder / "pools.json"
        self.path.write_text("{}")
        for name, text in MODULES.items():
            path = folder / "ansible_collections" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(START + text)

    def pools(self) -> dict[str, dict[str, Any]]:
        return {name: pool for name, pool in json.loads(self.path.read_text()).items() if pool}

    def run(self, pool: dict[str, Any], *arguments: str) -> Run:
        playbook = self.folder / "play.yml"
        playbook.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "roles": ["gpu_node_pool"]}]))
        given = {
            "gpu_node_pool_provider": self.provider,
            "gpu_node_pool_cluster": "llms",
            "gpu_node_pool_wait": False,
            "gpu_node_pools": [pool],
            **PROVIDERS[self.provider],
        }
        environment = {"HEADRACE_TEST_CLOUD": str(self.path), "ANSIBLE_COLLECTIONS_PATH": str(self.folder)}
        return play(playbook, given, *arguments, environment=environment)


@pytest.fixture(params=sorted(PROVIDERS))
def cloud(request: pytest.FixtureRequest, tmp_path: Path) -> Cloud:
    return Cloud(str(request.param), tmp_path)


def outcome(run: Run) -> tuple[int, int]:
    return run.returncode, run.changed


POOL = {"name": "l4", "accelerator": "nvidia-l4", "instance_type": "m", "count": 2}
ABSENT = {"name": "l4", "state": "absent"}


def test_life_of_a_node_pool(cloud: Cloud) -> None:
    """What check mode says is what is done, and what is there is no change."""
    for arguments in (("--check",), ()):
        nothing = cloud.run(ABSENT, *arguments)
        assert outcome(nothing) == (0, 0), nothing.output[-4000:]
    planned = cloud.run(POOL, "--check")
    assert outcome(planned) == (0, 1), planned.output[-4000:]
    assert cloud.pools() == {}
    made = cloud.run(POOL)
    assert outcome(made) == (0, 1), made.output[-4000:]
    assert list(cloud.pools()) == ["l4"]
    for arguments in (("--check",), ()):
        kept = cloud.run(POOL, *arguments)
        assert outcome(kept) == (0, 0), kept.output[-4000:]
    planned = cloud.run(ABSENT, "--check")
    assert outcome(planned) == (0, 1), planned.output[-4000:]
    assert list(cloud.pools()) == ["l4"]
    deleted = cloud.run(ABSENT)
    assert outcome(deleted) == (0, 1), deleted.output[-4000:]
    assert cloud.pools() == {}


def test_gke_refuses_what_its_module_would_not_do(tmp_path: Path) -> None:
    cloud = Cloud("gke", tmp_path)
    assert outcome(cloud.run(POOL)) == (0, 1)
    for arguments in (("--check",), ()):
        refused = cloud.run({**POOL, "count": 3}, *arguments)
        assert refused.returncode != 0
        assert "gpu_node_pool_pools[l4].count: 2 there, and 3 is asked for" in refused.said
        assert (
            "gcloud container clusters resize llms --node-pool l4 --num-nodes 3 --location europe-west4 --project llms"
            in refused.said
        )


def test_aks_resizes_and_leaves_a_pool_that_scales_to_the_autoscaler(tmp_path: Path) -> None:
    cloud = Cloud("aks", tmp_path)
    scales = {**POOL, "min": 1, "max": 4, "spot": True}
    assert outcome(cloud.run(scales)) == (0, 1)
    pools = cloud.pools()
    pools["l4"]["count"] = 4
    cloud.path.write_text(json.dumps(pools))
    kept = cloud.run(scales)
    assert outcome(kept) == (0, 0), kept.output[-4000:]
    assert cloud.pools()["l4"]["count"] == 4
    bounded = cloud.run({**scales, "max": 3})
    assert outcome(bounded) == (0, 1), bounded.output[-4000:]
    assert cloud.pools()["l4"]["count"] == 3
    fixed = cloud.run({**POOL, "count": 5})
    assert outcome(fixed) == (0, 1), fixed.output[-4000:]
    assert cloud.pools()["l4"]["count"] == 5
