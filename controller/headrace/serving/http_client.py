"""An HTTP client for servers that are not trusted: bounded in time and size, without redirects and compression."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping
from typing import Any, Self

import aiohttp

from headrace.config.limits import STEP_BYTES
from headrace.protocol import http

_MESSAGE_CHARACTERS = 200


class HttpError(Exception):
    """There is no answer that can be used: nobody answers, or not in time. The message says which."""


class Refused(HttpError):  # noqa: N818
    """Nobody listens there."""


class UnusableAnswer(HttpError):  # noqa: N818
    """There is an answer, and it is too long, or compressed."""


class HttpClient:
    """Asks over connections that it keeps. `per_host` and `connections` bound them, 0 for no bound; one that is idle is
    kept for `keepalive` seconds."""

    def __init__(self, *, connections: int = 0, per_host: int = 0, keepalive: float = 15.0) -> None:
        self._limits = {"limit": connections, "limit_per_host": per_host, "keepalive_timeout": keepalive}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @contextlib.asynccontextmanager
    async def open(
        self,
        method: str,
        url: str,
        *,
        seconds: float,
        verify: ssl.SSLContext | bool = True,
        headers: Mapping[str, str] | None = None,
        **content: Any,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Ask, and have the answer for at most `seconds`; its body is read by `pieces`. `content` is aiohttp's.

        Raises HttpError."""
        if self._session is None:
            connector = aiohttp.TCPConnector(**self._limits)  # type: ignore[arg-type]
            # Unpacking costs more than the bytes it saves, and what is packed can grow without bounds.
            self._session = aiohttp.ClientSession(
                connector=connector, headers={http.ACCEPT_ENCODING: "identity"}, auto_decompress=False
            )
        try:
            async with (
                asyncio.timeout(seconds),
                self._session.request(
                    method, url, allow_redirects=False, ssl=verify, headers=headers, **content
                ) as answer,
            ):
                yield answer
        except TimeoutError:
            raise HttpError("timed out") from None
        except (aiohttp.ClientError, OSError) as error:
            refused = isinstance(getattr(error, "os_error", error), ConnectionRefusedError)
            raise (Refused if refused else HttpError)(
                f"{type(error).__name__}: {error}"[:_MESSAGE_CHARACTERS]
            ) from None

    async def read(self, method: str, url: str, *, max_bytes: int, **asked: Any) -> tuple[int, bytes]:
        """Status and body of an answer. `asked` is what `open` takes. Raises HttpError."""
        body = bytearray()
        async with self.open(method, url, **asked) as answer:
            async for piece in pieces(answer, max_bytes):
                body += piece
            return answer.status, bytes(body)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None


async def pieces(answer: aiohttp.ClientResponse, max_bytes: int | None = None) -> AsyncIterator[bytes]:
    """An answer's body as it arrives, in pieces of at most STEP_BYTES, after each a turn for others.

    Raises UnusableAnswer, aiohttp's errors."""
    if answer.headers.get(http.CONTENT_ENCODING, "").strip().lower() not in ("", "identity"):
        raise UnusableAnswer("it is compressed")
    size = 0
    async for arrived in answer.content.iter_any():
        size += len(arrived)
        if max_bytes is not None and size > max_bytes:
            raise UnusableAnswer(f"it has over {max_bytes} bytes")
        for at in range(0, len(arrived), STEP_BYTES):
            yield arrived[at : at + STEP_BYTES]
            # What is there already is given without a wait.
            await asyncio.sleep(0)
