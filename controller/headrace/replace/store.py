"""The replacement's record in the cluster: a ConfigMap with the plan, the state, and what people ask of it.

Only the Lease's holder writes the state; the Lease's count of transitions goes with it, so that a process which lost
the Lease without noticing cannot write over its successor's. People write `request`, and nothing else."""

from __future__ import annotations

import getpass
import json
import socket
from typing import Any

from msgspec import Struct, structs

from headrace.core.fields import mapping
from headrace.kube.client import JSON_PATCH, MERGE_PATCH, ApiError, request
from headrace.kube.lease import LeaseLost
from headrace.kube.objects import CONFIG_MAPS, create, find
from headrace.protocol.objects import COMPONENT_LABEL, PART_OF_LABEL
from headrace.replace.plan import Plan, PoolRef, parse_plan
from headrace.replace.state import State, parse_state, state_as_json

LABELS = {PART_OF_LABEL: "headrace", COMPONENT_LABEL: "pool-replacement"}
ACTIONS = ("approve", "rollback")
_MAX_NAME = 253


class Unreadable(Exception):  # noqa: N818
    """What the ConfigMap holds is no record of a replacement."""


class Request(Struct, frozen=True):
    """What somebody asks of a running replacement. `percent` is the step that an approval is about; 0: any."""

    action: str
    by: str = ""
    percent: int = 0


class Record(Struct, frozen=True):
    """What is stored. `epoch` counts the Lease's holders up to the one that wrote it."""

    plan: Plan
    state: State
    epoch: int
    request: Request | None = None


def object_name(pool: PoolRef) -> str:
    """The name of a pool's Lease and ConfigMap."""
    return f"headrace-replace-{pool.name}"[:_MAX_NAME]


def who() -> str:
    """Who is asking, for logs: the user and the machine."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


class Store:
    """The ConfigMap of one pool's replacement."""

    def __init__(self, client: Any, pool: PoolRef) -> None:
        self._client = client
        self._namespace = pool.namespace
        self.name = object_name(pool)
        self._path = CONFIG_MAPS.path(pool.namespace, self.name)
        self._version = ""
        # Of the last look: who wrote, and what somebody asked for.
        self._epoch = 0
        self._asked: str | None = None

    async def load(self) -> Record | None:
        """What is stored; None if nothing is. Raises ApiError, InvalidPlan, InvalidState, Unreadable."""
        found = await find(self._client, self._path)
        if found is None:
            self._version, self._asked = "", None
            return None
        data = mapping(found.get("data"))
        self._version = str(found["metadata"].get("resourceVersion") or "")
        self._asked = data.get("request")
        if "state.json" not in data:
            return None
        try:
            plan, state = parse_plan(json.loads(data.get("plan.json", ""))), parse_state(json.loads(data["state.json"]))
            epoch = int(data.get("epoch") or 0)
        except (ValueError, RecursionError) as error:
            raise Unreadable(f"ConfigMap {self._namespace}/{self.name}: {error}") from error
        self._epoch = epoch
        return Record(plan, state, epoch, _request(self._asked))

    async def save(self, plan: Plan, state: State, epoch: int) -> None:
        """Write plan and state. Raises LeaseLost, ApiError."""
        data = {
            "plan.json": json.dumps(plan.as_json()),
            "state.json": json.dumps(state_as_json(state)),
            "phase": state.phase.value,
            "epoch": str(epoch),
        }
        for _ in range(10):
            # Looking for requests is enough to have seen a successor's writing, and its version.
            if self._epoch > epoch:
                raise LeaseLost(f"ConfigMap {self.name} was written by a later holder of the Lease")
            try:
                await self._write(data)
            except ApiError as error:
                if error.status not in (404, 409):
                    raise
                # Somebody asked for something meanwhile, made it first, or took over. What they ask for is new.
                asked = self._asked
                await self.load()
                self._asked = asked
            else:
                return
        raise ApiError(409, "Conflict", f"ConfigMap {self.name} changes all the time")

    async def _write(self, data: dict[str, str]) -> None:
        metadata: dict[str, Any] = {"name": self.name, "namespace": self._namespace, "labels": LABELS}
        if not self._version:
            body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
            found = await create(self._client, CONFIG_MAPS, body)
        else:
            body = {"metadata": {"resourceVersion": self._version, "labels": LABELS}, "data": data}
            found = await request(self._client, "PATCH", self._path, body=body, content_type=MERGE_PATCH)
        self._version = str(found["metadata"].get("resourceVersion") or "")

    async def ask(self, asked: Request) -> None:
        """Leave a request for whoever runs the replacement. Raises ApiError; 404: there is none."""
        text = json.dumps(structs.asdict(asked))
        await request(self._client, "PATCH", self._path, body={"data": {"request": text}}, content_type=MERGE_PATCH)

    async def clear_request(self) -> None:
        """The request that was seen last was dealt with; one that came since stays. Raises ApiError."""
        if self._asked is None:
            return
        test = {"op": "test", "path": "/data/request", "value": self._asked}
        operations = [test, {"op": "remove", "path": "/data/request"}]
        try:
            found = await request(self._client, "PATCH", self._path, body=operations, content_type=JSON_PATCH)
        except ApiError as error:
            # It is another one now, or gone.
            if error.status not in (404, 422):
                raise
        else:
            self._version = str(found["metadata"].get("resourceVersion") or "")
        self._asked = None


def _request(text: object) -> Request | None:
    """The request that somebody wrote; what cannot be read asks for nothing."""
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        return None
    if not isinstance(found, dict) or found.get("action") not in ACTIONS:
        return None
    percent = found.get("percent")
    return Request(str(found["action"]), str(found.get("by") or "")[:200], percent if isinstance(percent, int) else 0)
