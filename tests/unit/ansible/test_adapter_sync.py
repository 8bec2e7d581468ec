"""The sidecar against the real simulated server's registry over real HTTP: a restart, another source, a bad list."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from headrace.simulator.adapters import Models
from headrace.simulator.openai import ApiError

from ...serving import serving
from .conftest import load


class Server:
    """The simulator's models behind a socket; `restart` loses what was loaded at run time."""

    def __init__(self) -> None:
        self.restart()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self, status: int, content: Any) -> None:
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                self.answer(200, server.models.listing(0, 1))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                act = server.models.unload if "unload" in self.path else server.models.load
                try:
                    self.answer(200, act(body))
                except ApiError as error:
                    self.answer(error.status, str(error))

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.http.server_port

    def restart(self) -> None:
        self.models = Models(model="base", served_names=(), adapters={"static": "/static"})

    def has(self) -> dict[str, str]:
        return {one["id"]: one["root"] for one in self.models.listing(0, 1)["data"] if one["parent"]}


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    with serving(server.http):
        yield server


@pytest.fixture(scope="session")
def sync(repository: Path) -> ModuleType:
    return load(repository / "roles/vllm_model_server/files/adapter_sync.py")


def write(path: Path, present: dict[str, str], *absent: str) -> Path:
    items = [{"name": name, "source": source} for name, source in present.items()]
    path.write_text(json.dumps({"present": items, "absent": list(absent)}))
    return path


def test_a_server_that_restarts_gets_its_adapters_again(sync: ModuleType, server: Server, tmp_path: Path) -> None:
    path = write(tmp_path / "adapters.json", {"sql": "/sql"})
    assert sync.step(path, server.port) == ["/v1/load_lora_adapter sql: status 200"]
    assert sync.step(path, server.port) == []
    server.restart()
    sync.step(path, server.port)
    assert server.has() == {"static": "/static", "sql": "/sql"}


def test_the_list_changes_and_the_server_with_it(sync: ModuleType, server: Server, tmp_path: Path) -> None:
    path = write(tmp_path / "adapters.json", {"sql": "/v1", "chat": "/chat"})
    sync.step(path, server.port)
    write(path, {"sql": "/v2"}, "chat", "never-there")
    sync.step(path, server.port)
    assert server.has() == {"static": "/static", "sql": "/v2"}


def test_without_a_list_nothing_is_touched(sync: ModuleType, server: Server, tmp_path: Path) -> None:
    assert sync.step(tmp_path / "none.json", server.port) == []
    assert server.has() == {"static": "/static"}


@pytest.mark.parametrize(
    "content",
    ["", "[]", "3", "{", '{"present": 1}', '{"present": [{"name": "a"}]}', '{"absent": [1]}', '{"absent": "a"}'],
)
def test_a_bad_list_does_nothing_and_says_so(sync: ModuleType, server: Server, tmp_path: Path, content: str) -> None:
    path = tmp_path / "adapters.json"
    path.write_text(content)
    [line] = sync.step(path, server.port)
    assert line.startswith("nothing done")
    assert server.has() == {"static": "/static"}


def test_a_server_that_is_not_there_yet_is_waited_for(sync: ModuleType, tmp_path: Path) -> None:
    assert sync.step(write(tmp_path / "adapters.json", {"sql": "/sql"}), 1) == []


def test_what_the_server_refuses_is_told_and_the_rest_done(sync: ModuleType, server: Server, tmp_path: Path) -> None:
    lines = sync.step(write(tmp_path / "adapters.json", {"base": "/x", "sql": "/sql"}), server.port)
    assert "status 400" in lines[0]
    assert lines[1] == "/v1/load_lora_adapter sql: status 200"
