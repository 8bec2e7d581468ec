"""Role gpu_node_pool with provider eks, against an AWS API: made, kept, resized, planned, deleted. moto is that API."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..ports import free_port
from .roles import ROOT, Run, play

PYTHON = ROOT / "build/moto/bin/python"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "eu-central-1"}
ROLE_ARN = "arn:aws:iam::123456789012:role/nodes"


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an AWS API with an EKS cluster and two subnets in it."""
    assert PYTHON.exists(), f"{PYTHON} is missing: run `make tools`"
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    log = (tmp_path_factory.mktemp("moto") / "log").open("wb")
    command = [str(PYTHON), "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **CREDENTIALS})
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{address}/moto-api/", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.3)
        yield address
    finally:
        server.kill()
        server.wait()
        log.close()


def aws(endpoint: str, code: str) -> Any:
    """Run lines of Python with `eks` and `ec2`, clients of the API; what they leave in `answer`."""
    program = (
        "import boto3, json\n"
        f"eks, ec2 = (boto3.client(name, endpoint_url={endpoint!r}) for name in ('eks', 'ec2'))\n"
        f"{code}\nprint(json.dumps(answer, default=str))\n"
    )
    done = subprocess.run(
        [str(PYTHON), "-c", program], env={**os.environ, **CREDENTIALS}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def variables(endpoint: str) -> dict[str, Any]:
    """The role's variables for a cluster that was made there."""
    answer = aws(
        endpoint,
        "vpc = ec2.create_vpc(CidrBlock='10.0.0.0/16')['Vpc']['VpcId']\n"
        "answer = [ec2.create_subnet(VpcId=vpc, CidrBlock=f'10.0.{n}.0/24')['Subnet']['SubnetId'] for n in (1, 2)]\n"
        f"eks.create_cluster(name='llms', roleArn='{ROLE_ARN}', resourcesVpcConfig=dict(subnetIds=answer))",
    )
    return {
        "gpu_node_pool_provider": "eks",
        "gpu_node_pool_cluster": "llms",
        "gpu_node_pool_python": str(PYTHON),
        "gpu_node_pool_wait": False,
        "gpu_node_pool_eks": {
            "region": "eu-central-1",
            "node_role": ROLE_ARN,
            "subnets": answer,
            "ami_type": "AL2_x86_64_GPU",
            "endpoint_url": endpoint,
        },
    }


def run(folder: Path, variables: dict[str, Any], pool: dict[str, Any], *arguments: str) -> Run:
    playbook = folder / "play.yml"
    content = {"hosts": "localhost", "gather_facts": False, "roles": ["gpu_node_pool"], "environment": CREDENTIALS}
    playbook.write_text(json.dumps([content]))
    return play(playbook, {**variables, "gpu_node_pools": [pool]}, *arguments)


def groups(endpoint: str) -> list[str]:
    found = aws(endpoint, "answer = eks.list_nodegroups(clusterName='llms')['nodegroups']")
    assert isinstance(found, list)
    return found


def complete(endpoint: str, name: str) -> None:
    """EKS always tells a group's updateConfig; moto forgets the one at creation, and keeps one that comes later."""
    aws(
        endpoint,
        f"answer = eks.update_nodegroup_config(clusterName='llms', nodegroupName={name!r},"
        " updateConfig=dict(maxUnavailable=1))",
    )


def test_life_of_a_node_group(endpoint: str, variables: dict[str, Any], tmp_path: Path) -> None:
    pool = {
        "name": "l4",
        "accelerator": "nvidia-l4",
        "instance_type": "g6.2xlarge",
        "count": 2,
        "min": 1,
        "max": 4,
        "spot": True,
        "taints": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}],
    }
    planned = run(tmp_path, variables, pool, "--check")
    assert planned.returncode == 0, planned.output[-4000:]
    assert "eks: node pool l4: 2 nodes (1 to 4) of g6.2xlarge, nvidia-l4, spot" in planned.said
    assert planned.changed == 1
    assert groups(endpoint) == []

    made = run(tmp_path, variables, pool)
    assert (made.returncode, made.changed) == (0, 1), made.output[-4000:]
    assert groups(endpoint) == ["l4"]
    found = aws(endpoint, "answer = eks.describe_nodegroup(clusterName='llms', nodegroupName='l4')['nodegroup']")
    assert found["scalingConfig"] == {"minSize": 1, "maxSize": 4, "desiredSize": 2}
    assert found["instanceTypes"] == ["g6.2xlarge"]
    assert found["capacityType"] == "SPOT"
    assert found["amiType"] == "AL2_x86_64_GPU"
    assert found["labels"] == {"headrace.dev/gpu-node-pool": "l4", "headrace.dev/accelerator": "nvidia-l4"}
    assert found["taints"] == [{"key": "nvidia.com/gpu", "value": "present", "effect": "NO_SCHEDULE"}]

    complete(endpoint, "l4")
    kept = run(tmp_path, variables, pool)
    assert (kept.returncode, kept.changed) == (0, 0), kept.output[-4000:]

    deleted = run(tmp_path, variables, {"name": "l4", "state": "absent"})
    assert (deleted.returncode, deleted.changed) == (0, 1), deleted.output[-4000:]
    assert groups(endpoint) == []
    again = run(tmp_path, variables, {"name": "l4", "state": "absent"})
    assert (again.returncode, again.changed) == (0, 0), again.output[-4000:]


def test_a_group_is_resized(endpoint: str, variables: dict[str, Any], tmp_path: Path) -> None:
    pool = {"name": "grows", "accelerator": "nvidia-l4", "instance_type": "g6.2xlarge", "count": 1, "max": 2}
    assert run(tmp_path, variables, pool).returncode == 0
    complete(endpoint, "grows")
    resized = run(tmp_path, variables, {**pool, "count": 3, "max": 6})
    assert (resized.returncode, resized.changed) == (0, 1), resized.output[-4000:]
    found = aws(endpoint, "answer = eks.describe_nodegroup(clusterName='llms', nodegroupName='grows')['nodegroup']")
    assert found["scalingConfig"]["desiredSize"] == 3
    assert found["scalingConfig"]["maxSize"] == 6
