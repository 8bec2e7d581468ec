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


def group(endpoint: str, name: str) -> Any:
    return aws(endpoint, f"answer = eks.describe_nodegroup(clusterName='llms', nodegroupName={name!r})['nodegroup']")


def scale(endpoint: str, name: str, size: int) -> None:
    """As the cluster autoscaler does."""
    aws(
        endpoint,
        f"now = eks.describe_nodegroup(clusterName='llms', nodegroupName={name!r})['nodegroup']['scalingConfig']\n"
        f"answer = eks.update_nodegroup_config(clusterName='llms', nodegroupName={name!r},"
        f" scalingConfig=now | dict(desiredSize={size}))",
    )


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
    found = group(endpoint, "l4")
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
    pool = {"name": "grows", "accelerator": "nvidia-l4", "instance_type": "g6.2xlarge", "count": 1}
    assert run(tmp_path, variables, pool).returncode == 0
    complete(endpoint, "grows")
    planned = run(tmp_path, variables, {**pool, "count": 3}, "--check")
    assert (planned.returncode, planned.changed) == (0, 1), planned.output[-4000:]
    assert group(endpoint, "grows")["scalingConfig"]["desiredSize"] == 1
    resized = run(tmp_path, variables, {**pool, "count": 3})
    assert (resized.returncode, resized.changed) == (0, 1), resized.output[-4000:]
    assert group(endpoint, "grows")["scalingConfig"] == {"minSize": 3, "maxSize": 3, "desiredSize": 3}


def test_a_group_that_scales_keeps_the_size_that_the_autoscaler_gave_it(
    endpoint: str, variables: dict[str, Any], tmp_path: Path
) -> None:
    pool = {"name": "scales", "accelerator": "nvidia-l4", "instance_type": "g6.2xlarge", "count": 1, "max": 6}
    assert run(tmp_path, variables, pool).returncode == 0
    complete(endpoint, "scales")
    scale(endpoint, "scales", 4)
    kept = run(tmp_path, variables, pool)
    assert (kept.returncode, kept.changed) == (0, 0), kept.output[-4000:]
    assert group(endpoint, "scales")["scalingConfig"]["desiredSize"] == 4
    bounded = run(tmp_path, variables, {**pool, "max": 3})
    assert (bounded.returncode, bounded.changed) == (0, 1), bounded.output[-4000:]
    assert group(endpoint, "scales")["scalingConfig"] == {"minSize": 0, "maxSize": 3, "desiredSize": 3}


def test_a_label_that_has_another_value_is_refused(endpoint: str, variables: dict[str, Any], tmp_path: Path) -> None:
    pool = {"name": "labelled", "accelerator": "nvidia-l4", "instance_type": "g6.2xlarge", "count": 1}
    assert run(tmp_path, variables, {**pool, "labels": {"team": "a"}}).returncode == 0
    complete(endpoint, "labelled")
    refused = run(tmp_path, variables, {**pool, "labels": {"team": "b"}})
    assert refused.returncode != 0
    assert "gpu_node_pool_pools[labelled].labels: team is a there, and b is asked for" in refused.said
    assert "aws eks update-nodegroup-config --cluster-name llms --nodegroup-name labelled" in refused.said


@pytest.mark.parametrize("where", ["pool", "all"])
def test_life_of_a_node_group_with_a_launch_template(
    endpoint: str, variables: dict[str, Any], tmp_path: Path, where: str
) -> None:
    name = f"template-{where}"
    made_template = aws(
        endpoint,
        f"answer = ec2.create_launch_template(LaunchTemplateName={name!r}, LaunchTemplateData=dict("
        "InstanceType='g6.2xlarge', ImageId='ami-12345678'))['LaunchTemplate']['LaunchTemplateId']",
    )
    template = {"id": made_template, "version": "1"}
    pool: dict[str, Any] = {"name": name, "accelerator": "nvidia-l4", "count": 2}
    given = variables
    if where == "pool":
        # Beside what is said for all pools.
        pool["launch_template"] = template
    else:
        own = {key: value for key, value in variables["gpu_node_pool_eks"].items() if key != "ami_type"}
        given = {**variables, "gpu_node_pool_eks": {**own, "launch_template": template}}
    made = run(tmp_path, given, pool)
    assert (made.returncode, made.changed) == (0, 1), made.output[-4000:]
    found = group(endpoint, name)
    assert found["launchTemplate"]["id"] == made_template
    assert found["launchTemplate"]["version"] == "1"
    complete(endpoint, name)
    kept = run(tmp_path, given, pool)
    assert (kept.returncode, kept.changed) == (0, 0), kept.output[-4000:]
    refused = run(tmp_path, given, {**pool, "instance_type": "g6.2xlarge"})
    assert refused.returncode != 0
    assert "takes none beside a launch template" in refused.said
    deleted = run(tmp_path, given, {"name": name, "state": "absent"})
    assert (deleted.returncode, deleted.changed) == (0, 1), deleted.output[-4000:]
    assert name not in groups(endpoint)
