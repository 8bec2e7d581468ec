"""Changes to the API server without a kubectl process for each: tests make hundreds."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from ...hang import HANG_SECONDS
from .objects import Object

_IRREGULAR = {
    "Gateway": "gateways",
    "GatewayClass": "gatewayclasses",
    "EnvoyProxy": "envoyproxies",
    "BackendTLSPolicy": "backendtlspolicies",
}
_CLUSTER_SCOPED = ("Namespace", "GatewayClass")


class Api:
    """A client that may do everything."""

    def __init__(self, kubeconfig: Path) -> None:
        content = json.loads(kubeconfig.read_text())
        self._server = content["clusters"][0]["cluster"]["server"]
        self._token = content["users"][0]["user"]["token"]
        self._context = ssl._create_unverified_context()

    def apply(self, *wanted: Object) -> None:
        """Server-side apply."""
        for found in wanted:
            path = f"{path_of(found)}?fieldManager=test&force=true"
            self._call("PATCH", path, found, "application/apply-patch+yaml")

    def patch(self, found: Object, change: Object) -> None:
        """Merge into an object; None removes."""
        self._call("PATCH", path_of(found), change, "application/merge-patch+json")

    def patch_status(self, found: Object, status: Object) -> None:
        """Merge into an object's status."""
        self._call("PATCH", f"{path_of(found)}/status", {"status": status}, "application/merge-patch+json")

    def delete(self, *unwanted: Object) -> None:
        """Delete objects at once. Those that are not there are no error."""
        for found in unwanted:
            self._call("DELETE", path_of(found), {"gracePeriodSeconds": 0}, "application/json", missing_ok=True)

    def get(self, found: Object) -> Any:
        """The object as it is now; {} if there is none."""
        return self._call("GET", path_of(found), None, "application/json", missing_ok=True)

    def list(self, path: str) -> list[Any]:
        """The items of a list."""
        return list(self._call("GET", path, None, "application/json")["items"])

    def _call(self, method: str, path: str, body: Any, content_type: str, *, missing_ok: bool = False) -> Any:
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": content_type}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._server + path, data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=HANG_SECONDS, context=self._context) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            if error.code == 404 and missing_ok:
                return {}
            raise AssertionError(f"{method} {path}: {error.code} {error.read().decode(errors='replace')}") from None


def path_of(found: Object) -> str:
    """Where the API server keeps an object."""
    group, _, version = found["apiVersion"].rpartition("/")
    kind = found["kind"]
    plural = _IRREGULAR.get(kind, kind.lower() + "s")
    root = f"/apis/{group}/{version}" if group else f"/api/{version}"
    namespace = "" if kind in _CLUSTER_SCOPED else f"/namespaces/{found['metadata'].get('namespace', 'default')}"
    return f"{root}{namespace}/{plural}/{found['metadata']['name']}"
