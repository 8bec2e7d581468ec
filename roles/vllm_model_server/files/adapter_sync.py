"""Keep a model server's LoRA adapters as a list says: the sidecar of role vllm_model_server. adapter_sync.py LIST PORT.

A server that restarts has lost what was loaded at run time. This process asks it every few seconds, and loads what the
list has and the server lacks. LIST is a file that may come, change and go: {"present": [{"name", "source"}], "absent":
[name]}. Nothing but Python's standard library, so that it runs in any image with Python.
"""

from __future__ import annotations

import http.client
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SECONDS = 5.0
# Loading an adapter may mean to download it.
TIMEOUT = 300.0


def read(path: Path) -> dict[str, Any]:
    """The list; an empty one where there is no file. Raises ValueError for a file that is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"present": [], "absent": []}
    if not isinstance(found, dict):
        raise ValueError(f"{path}: no object: {str(found)[:100]}")
    present, absent = found.get("present", []), found.get("absent", [])
    if not isinstance(present, list) or not all(
        isinstance(one, dict) and {"name", "source"} <= set(one) for one in present
    ):
        raise ValueError(f"{path}: present is no list of objects with name and source")
    if not isinstance(absent, list) or not all(isinstance(one, str) for one in absent):
        raise ValueError(f"{path}: absent is no list of names")
    return {"present": present, "absent": absent}


def differences(listing: Any, wanted: dict[str, Any]) -> Iterator[tuple[str, dict[str, str]]]:
    """What to ask of the server: (path, body). `listing` is its answer of /v1/models."""
    has = {one["id"]: one.get("root") for one in listing["data"] if one.get("parent")}
    for name in wanted["absent"]:
        if name in has:
            yield "/v1/unload_lora_adapter", {"lora_name": name}
    for one in wanted["present"]:
        name, source = one["name"], one["source"]
        if name in has and has[name] and has[name] != source:
            yield "/v1/unload_lora_adapter", {"lora_name": name}
        elif name in has:
            continue
        yield "/v1/load_lora_adapter", {"lora_name": name, "lora_path": source}


def ask(port: int, method: str, path: str, body: dict[str, str] | None = None) -> tuple[int, bytes]:
    """One request to the server beside us. Raises OSError or HTTPException where there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    try:
        headers = {"content-type": "application/json"} if body is not None else {}
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def step(path: Path, port: int) -> list[str]:
    """Look once, and do what is to be done; a line for each thing done or refused."""
    try:
        wanted = read(path)
        status, content = ask(port, "GET", "/v1/models")
        if status != 200:
            return [f"/v1/models: status {status}"]
        todo = list(differences(json.loads(content), wanted))
    except (OSError, http.client.HTTPException):
        # The server loads its model, or ends.
        return []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"nothing done: {error!r}"]
    lines = []
    for where, body in todo:
        try:
            status, content = ask(port, "POST", where, body)
        except (OSError, http.client.HTTPException) as error:
            return [*lines, f"{where} {body['lora_name']}: {error!r}"]
        said = "" if status == 200 else f" {content[:200].decode('utf-8', 'replace')}"
        lines.append(f"{where} {body['lora_name']}: status {status}{said}")
    return lines


def main(arguments: list[str]) -> None:
    """Until the Pod ends. The same line is told once, not every few seconds."""
    path, port = Path(arguments[0]), int(arguments[1])
    told: list[str] = []
    while True:
        lines = step(path, port)
        for line in lines:
            if line not in told:
                sys.stderr.write(json.dumps({"message": line}) + "\n")
                sys.stderr.flush()
        told = lines
        time.sleep(SECONDS)


if __name__ == "__main__":
    main(sys.argv[1:])
