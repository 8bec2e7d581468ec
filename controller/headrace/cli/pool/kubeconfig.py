"""Which kubeconfig a command uses that was given none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

# Where role local_cluster writes it, below the home directory; the folder in between has the cluster's name.
_LOCAL = ".local/state/headrace"
_FILE = "kubeconfig/admin.conf"
_DEFAULT_NAME = "headrace"


def choose(given: str, context: str, environment: Mapping[str, str], home: Path) -> tuple[str | None, str]:
    """The path of the kubeconfig, and a note where a local cluster's was found; None: $KUBECONFIG, or a Pod's service
    account.

    In this order: the flag, $KUBECONFIG, a Pod's service account, the local cluster's unless a context is named,
    ~/.kube/config."""
    if given:
        return given, ""
    if environment.get("KUBECONFIG") or environment.get("KUBERNETES_SERVICE_HOST"):
        return None, ""
    found = sorted((home / _LOCAL).glob(f"*/{_FILE}"), key=lambda path: (path.parts[-3] != _DEFAULT_NAME, path))
    if found and not context:
        return str(found[0]), f"the local cluster {found[0].parts[-3]}, by {found[0]}"
    default = home / ".kube/config"
    return (str(default), "") if default.is_file() else (None, "")
