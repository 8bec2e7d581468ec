# Copyright The Headrace authors
# Apache-2.0

"""What the smoke test asks a Gateway, and what it makes of the answers. Nothing of a cluster."""

from __future__ import annotations

import http.client
import json
import ssl
import time
import urllib.parse
import uuid

PROMPT = "Say in one sentence what a headrace is."


class Failed(Exception):  # noqa: N818
    """An answer that is not what it should be; the text says what came, what should have, and what to do next."""


# ---- what to ask -----------------------------------------------------------------------------------------------------


def targets(routes, pools, model_servers, namespace="default"):
    """Per route to a pool: its path, the pool, and its model servers, where the inventory has them."""
    by_key = {(pool.get("namespace", namespace), pool.get("api_version", "v1"), pool["name"]): pool for pool in pools}
    found = []
    for route in routes:
        for rule in route["rules"]:
            for backend in rule["backends"]:
                key = (
                    backend.get("namespace", route.get("namespace", namespace)),
                    backend.get("api_version", "v1"),
                    backend.get("pool"),
                )
                pool = by_key.get(key)
                if pool is None or backend.get("weight", 1) == 0 or rule.get("headers"):
                    continue
                groups = [
                    group
                    for group in model_servers
                    if _selects(pool.get("selector") or {}, group) and group.get("namespace", namespace) == key[0]
                ]
                if groups:
                    hosts = route.get("hostnames") or [""]
                    path = rule.get("path", "/").rstrip("/")
                    found.append(
                        {
                            "path": path,
                            "host": hosts[0],
                            "namespace": key[0],
                            "pool": pool,
                            "groups": groups,
                            "alone": len(rule["backends"]) == 1,
                        }
                    )
    return found


def _selects(selector, group):
    return bool(selector) and selector.items() <= (group.get("labels") or {"app": group["name"]}).items()


def questions(target):
    """What is asked of one target: (endpoint, model, stream)."""
    group = target["groups"][0]
    models = [
        (group.get("served_model_names") or [group["model"]])[0],
        *[adapter["name"] for adapter in group.get("adapters") or []][:1],
    ]
    asked = []
    for model in models:
        asked += [("/v1/completions", model, False), ("/v1/completions", model, True)]
    return [*asked, ("/v1/chat/completions", models[0], False), ("/v1/chat/completions", models[0], True)]


# ---- asking ----------------------------------------------------------------------------------------------------------


def connect(url, timeout):
    """A connection to the Gateway. TLS is not verified: its names may not resolve here."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Failed(f"url '{url}' is no http:// or https:// address. Fix: set headrace_gateway_url to one.")
    if parts.scheme == "https":
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return http.client.HTTPSConnection(parts.hostname, parts.port or 443, timeout=timeout, context=context)
    return http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=timeout)


def ask(url, target, endpoint, model, stream, max_tokens, timeout):
    """Send one request; seconds to the first token (whole answers: to the answer) and to the end."""
    content = {"messages": [{"role": "user", "content": PROMPT}]} if "chat" in endpoint else {"prompt": PROMPT}
    body = json.dumps(dict(content, model=model, max_tokens=max_tokens, stream=stream))
    request_id = str(uuid.uuid4())
    headers = {"content-type": "application/json", "x-request-id": request_id}
    if target["host"]:
        headers["host"] = target["host"]
    connection = connect(url, timeout)
    started = time.monotonic()
    first = None
    lines = []
    try:
        connection.request("POST", target["path"] + endpoint, body, headers)
        response = connection.getresponse()
        for line in iter(response.readline, b""):
            if first is None and (not stream or line.startswith(b"data:")):
                first = time.monotonic() - started
            lines.append(line)
    except OSError as error:
        raise Failed(
            "{}{} at {}: {}. Next: kubectl get gateway,service -A, and the Envoy's logs.".format(
                target["path"], endpoint, url, error
            )
        ) from error
    finally:
        connection.close()
    return {
        # An Envoy at the edge gives requests ids of its own; servers that echo the header tell which.
        "request_id": response.getheader("x-request-id") or request_id,
        "endpoint": target["path"] + endpoint,
        "sent_path": endpoint,
        "model": model,
        "stream": stream,
        "status": response.status,
        "pod": response.getheader("x-headrace-pod", ""),
        "body": b"".join(lines).decode("utf-8", "replace"),
        "content_type": response.getheader("content-type", ""),
        "ttft": first,
        "seconds": time.monotonic() - started,
    }


def text_of(answer):
    """The text of an answer. Raises Failed for anything that is no completion of the model that was asked for."""
    what = "{} of {}{}".format(answer["endpoint"], answer["model"], ", streamed" if answer["stream"] else "")
    if answer["status"] != 200:
        raise Failed(f"{what}: status {answer['status']}, not 200: {answer['body'][:500].strip()}")
    try:
        if not answer["stream"]:
            parts = [json.loads(answer["body"])]
        else:
            if not answer["content_type"].startswith("text/event-stream"):
                raise Failed("{}: content-type {}, not text/event-stream".format(what, answer["content_type"]))
            events = [line[5:].strip() for line in answer["body"].splitlines() if line.startswith("data:")]
            if not events or events[-1] != "[DONE]":
                raise Failed(f"{what}: {len(events)} events, the last is not [DONE]: the answer was cut")
            parts = [json.loads(event) for event in events[:-1]]
        choices = [choice for part in parts for choice in part["choices"]]
        text = "".join(
            (choice.get("text") or (choice.get("message") or choice.get("delta") or {}).get("content") or "")
            for choice in choices
        )
        model = parts[0].get("model", "")
        aborted = any(choice.get("finish_reason") == "abort" for choice in choices)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise Failed("{}: no completion ({!r}): {}".format(what, error, answer["body"][:500])) from error
    # A server that is told to end does this to what it is answering, with status 200.
    if aborted:
        raise Failed(f"{what}: finish_reason abort: the server cut the answer")
    if not text.strip():
        raise Failed("{}: the completion is empty: {}".format(what, answer["body"][:500]))
    if model != answer["model"]:
        raise Failed(f"{what}: the answer is of model '{model}'")
    return text


def await_answer(url, target, timeout):
    """Wait until the route answers at all: endpoints reach Envoy a moment after everything else is ready."""
    deadline = time.monotonic() + timeout
    seen = "nothing"
    while time.monotonic() < deadline:
        connection = connect(url, 5)
        try:
            connection.request(
                "GET", target["path"] + "/v1/models", headers={"host": target["host"]} if target["host"] else {}
            )
            response = connection.getresponse()
            seen = f"status {response.status}: {response.read()[:200].decode('utf-8', 'replace')}"
            if response.status == 200:
                return
        except (OSError, http.client.HTTPException) as error:
            seen = str(error)
        finally:
            connection.close()
        time.sleep(0.5)
    raise Failed(
        f"{url}{target['path']}/v1/models gave {seen} for {timeout} s. Next: kubectl get httproute,inferencepool -A "
        "-o yaml (their status), the endpoint picker's logs and the Envoy's."
    )


def table(answers):
    """The answers as lines of equal columns."""
    rows = [("POOL", "REQUEST", "MODEL", "POD", "TTFT", "TOTAL", "WHY")]
    for answer in answers:
        request = answer["endpoint"] + (" (stream)" if answer["stream"] else "")
        ttft = "%.0f ms" % (1000 * answer["ttft"]) if answer["stream"] and answer["ttft"] is not None else "-"
        rows.append(
            (
                answer["pool"],
                request,
                answer["model"],
                answer["pod"],
                ttft,
                "%.0f ms" % (1000 * answer["seconds"]),
                answer["why"],
            )
        )
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]) - 1)] + [0]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]
