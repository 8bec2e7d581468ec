"""Access to metrics and debug pages as the API server grants it: TokenReview for who, SubjectAccessReview for what.

As the reference picker's metrics endpoint: the reader's token must be allowed `get` on the path as a non-resource URL.
The picker's own account needs `create` on both reviews, which are cluster-scoped."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

from headrace.kube.client import ApiError, Resource, request

logger = logging.getLogger(__name__)

_TOKEN_REVIEWS = Resource("authentication.k8s.io", "v1", "tokenreviews", namespaced=False)
_ACCESS_REVIEWS = Resource("authorization.k8s.io", "v1", "subjectaccessreviews", namespaced=False)
# A scraper asks every few seconds; a right that was taken away holds that much longer.
_GRANTED_SECONDS = 60.0
_DENIED_SECONDS = 10.0
_MOST_KEPT = 1024
_MOST_TOKEN_BYTES = 16 << 10


@dataclass(frozen=True, slots=True)
class Denied:
    """Why a page is not shown; `message` is for the one who asked."""

    status: int
    message: str


@dataclass(eq=False)
class Access:
    """Asks the API server, and remembers its answers for a while. `clock` gives seconds that only go forward.

    `client` gives a kubernetes.aio ApiClient, or None as long as the API server is not connected. Tokens are kept as
    digests only."""

    client: Callable[[], Any]
    _: KW_ONLY
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        self._answers: OrderedDict[tuple[bytes, str], tuple[float, Denied | None]] = OrderedDict()

    async def check(self, authorization: str, path: str) -> Denied | None:
        """None lets in; 401 without a valid token, 403 where its owner may not, 503 where nobody can tell.

        `authorization` is the request's header, "" without one."""
        client = self.client()
        if client is None:
            return Denied(503, "cannot authorize yet: not connected to the API server")
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token or len(token) > _MOST_TOKEN_BYTES:
            return Denied(401, "send a service account's token: Authorization: Bearer TOKEN")
        key = (hashlib.sha256(token.encode("utf-8", "replace")).digest(), path)
        now = self.clock()
        kept = self._answers.get(key)
        if kept is not None and kept[0] > now:
            return kept[1]
        try:
            answer = await _review(client, token, path)
        except ApiError as error:
            if error.status == 403:
                fix = "give the picker's service account create on tokenreviews and subjectaccessreviews"
                logger.error("who may read %s cannot be asked: %s; %s", path, error, fix)
            else:
                logger.warning("who may read %s cannot be asked: %s", path, error)
            return Denied(503, "the API server did not say who may read this; the picker's log has the reason")
        seconds = _GRANTED_SECONDS if answer is None else _DENIED_SECONDS
        self._answers[key] = (now + seconds, answer)
        self._answers.move_to_end(key)
        while len(self._answers) > _MOST_KEPT:
            self._answers.popitem(last=False)
        return answer


async def _review(client: Any, token: str, path: str) -> Denied | None:
    status = await _create(client, _TOKEN_REVIEWS, "TokenReview", {"token": token})
    user = status.get("user")
    if status.get("authenticated") is not True or not isinstance(user, Mapping):
        return Denied(401, "the token is not valid; make a new one: kubectl create token ACCOUNT")
    spec = {
        "user": user.get("username") or "",
        "uid": user.get("uid") or "",
        "groups": user.get("groups") or [],
        "extra": user.get("extra") or {},
        "nonResourceAttributes": {"path": path, "verb": "get"},
    }
    status = await _create(client, _ACCESS_REVIEWS, "SubjectAccessReview", spec)
    if status.get("allowed") is True:
        return None
    rule = f'a ClusterRole with nonResourceURLs: ["{path}"], verbs: [get]'
    return Denied(403, f"{spec['user']} may not read {path}: bind it to {rule}")


async def _create(client: Any, resource: Resource, kind: str, spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """The status of a review. Raises ApiError."""
    body = {"apiVersion": f"{resource.group}/{resource.version}", "kind": kind, "spec": spec}
    answer = await request(client, "POST", resource.path(), body=body, content_type="application/json")
    status = answer.get("status")
    return status if isinstance(status, Mapping) else {}
