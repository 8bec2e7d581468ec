"""Envoy Gateway's extension hook, served over gRPC."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from headrace.gateway.metrics import Metrics
from headrace.gateway.protocol.extension_pb2 import PostTranslateModifyRequest
from headrace.gateway.snapshot import Snapshot
from headrace.gateway.translate import Translation, named_rules, translate
from headrace.gateway.xds_names import RuleName
from headrace.protocol import rpc

logger = logging.getLogger(__name__)

_NOTES_LOGGED = 50


@dataclass(eq=False)
class Hook:
    """Answers PostTranslateModify. `snapshot` gives what to translate from, for the rules that a call names;
    `on_translated` is told of each translation, of the rules that it was about, and of what it was made from."""

    snapshot: Callable[[frozenset[RuleName]], Awaitable[Snapshot]]
    metrics: Metrics
    on_translated: Callable[[Translation, Mapping[str, frozenset[RuleName]], Snapshot], None] = lambda *_: None

    def __post_init__(self) -> None:
        self._noted: frozenset[str] = frozenset()

    def handler(self) -> grpc.GenericRpcHandler:
        """What a gRPC server registers."""
        method: Any = grpc.unary_unary_rpc_method_handler(self._post_translate_modify)
        return grpc.method_handlers_generic_handler(rpc.EXTENSION_SERVICE, {"PostTranslateModify": method})

    async def _post_translate_modify(self, content: bytes, context: Any) -> bytes:
        started = time.perf_counter()
        try:
            request = PostTranslateModifyRequest.FromString(content)
            named = named_rules(request)
            snapshot = await self.snapshot(frozenset().union(*named.values()))
        except (DecodeError, RuntimeError) as error:
            self.metrics.translations.labels("failed").inc()
            code, why = grpc.StatusCode.INVALID_ARGUMENT, f"PostTranslateModifyRequest cannot be read: {error}"
            if isinstance(error, RuntimeError):
                # Envoy Gateway keeps the configuration that it has, and tries again.
                code, why = grpc.StatusCode.UNAVAILABLE, str(error)
            await context.abort(code, why)
            raise
        translation = translate(request, snapshot)
        self._log(translation)
        self.metrics.translations.labels("ok").inc()
        self.metrics.translation_seconds.observe(time.perf_counter() - started)
        self.metrics.translation_notes.set(len(translation.notes))
        self.on_translated(translation, named, snapshot)
        return translation.response.SerializeToString(deterministic=True)

    def _log(self, translation: Translation) -> None:
        """Each problem once, until it is gone: Envoy Gateway calls for every change of anything."""
        notes = frozenset(translation.notes)
        for note in sorted(notes - self._noted)[:_NOTES_LOGGED]:
            logger.warning("%s", note)
        self._noted = notes
