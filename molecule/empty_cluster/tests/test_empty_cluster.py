"""Check mode said what it would do, and did nothing."""

from __future__ import annotations

from support import get, play

KUBECONFIG = "/tmp/headrace-molecule-empty_cluster/kubeconfig"


def test_each_role_says_what_it_would_make():
    run = play("empty_cluster", None, "--check", "--diff")
    assert (run.returncode, run.failed) == (0, 0), run.output[-4000:]
    said = " ".join(run.output.split())
    for text in (
        "gateway controller and EnvoyProxy headrace would be made",
        "Namespace missing does not exist yet",
        "InferencePool missing/vllm-llama3-8b-instruct and its endpoint picker vllm-llama3-8b-instruct-epp "
        "would be made",
        "GatewayClass headrace, Gateways inference-gateway",
        "Certificate missing/first-tls is missing or due: a run without --check makes it",
        "Skipped, as the cluster does not serve podmonitors.monitoring.coreos.com",
        "Namespace missing does not exist yet: a run without --check creates it, with monitors, rules",
    ):
        assert text in said


def test_nothing_was_made():
    assert get("crds", kubeconfig=KUBECONFIG) == []
    names = {namespace["metadata"]["name"] for namespace in get("namespaces", kubeconfig=KUBECONFIG)}
    assert names <= {"default", "kube-system", "kube-public", "kube-node-lease"}
    kinds, ours = "deployments,daemonsets,secrets,clusterroles", "app.kubernetes.io/part-of=headrace"
    assert get(kinds, "-A", "-l", ours, kubeconfig=KUBECONFIG) == []
