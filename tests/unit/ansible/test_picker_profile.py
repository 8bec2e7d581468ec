"""The profile that role inference_pool writes, as the picker reads it."""

from __future__ import annotations

from pathlib import Path

import yaml

from headrace.epp.config_file import read_document

REPOSITORY = Path(__file__).resolve().parents[3]
BASE = {"apiVersion": "inference.networking.x-k8s.io/v1alpha1", "kind": "EndpointPickerConfig"}


def test_the_roles_profile_is_the_one_that_was_measured() -> None:
    defaults = yaml.safe_load((REPOSITORY / "roles/inference_pool/defaults/main.yml").read_text())
    read = read_document(BASE | defaults["inference_pool_picker_config"])
    measured = read_document(yaml.safe_load((REPOSITORY / "benchmarks/affinity.yaml").read_text()))
    assert read.notes == ()
    assert read.scheduling.profile == measured.scheduling.profile
