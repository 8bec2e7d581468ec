"""A volume claim is written anew by every apply, with nothing in it changed: that is no change of a role's run."""

from __future__ import annotations

from pathlib import Path

import yaml
from ansible_collections.kubernetes.core.plugins.module_utils.k8s.service import diff_objects


def test_a_write_that_changes_nothing_is_no_change(repository: Path) -> None:
    tasks = yaml.safe_load((repository / "roles/vllm_model_server/tasks/deploy.yml").read_text())
    [task] = [one for one in tasks if one["name"] == "Deploy | Apply the model servers"]
    hidden = task["kubernetes.core.k8s"]["hidden_fields"]
    claim = {"kind": "PersistentVolumeClaim", "metadata": {"name": "cache", "resourceVersion": "297"}, "status": {}}
    written = {**claim, "metadata": {"name": "cache", "resourceVersion": "300"}}
    assert diff_objects(claim, written, hidden)[0]
    assert not diff_objects(claim, {**written, "spec": {"storageClassName": "other"}}, hidden)[0]
