"""The HTTP server of the simulated model server: vLLM's routes, or SGLang's, over the engine loop."""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from array import array
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import xxhash
from aiohttp import web

from headrace.protocol import http
from headrace.simulator.adapters import Models, Served
from headrace.simulator.answers import SYSTEM_FINGERPRINT, AnswerForm, Usage, embedding
from headrace.simulator.control import control_routes
from headrace.simulator.engine import Engine
from headrace.simulator.faults import Faults
from headrace.simulator.generation import Generation, check_length
from headrace.simulator.loop import EngineLoop
from headrace.simulator.metrics import CONTENT_TYPE, EngineMetrics, MetricsPage
from headrace.simulator.openai import (
    ApiError,
    EmbeddingRequest,
    GenerationRequest,
    out_of_vocabulary,
    parse_chat,
    parse_completion,
    parse_embedding,
    parse_json,
    parse_messages,
    require_json,
    wrong_type,
)
from headrace.simulator.other_forms import MessagesForm, ResponsesForm, parse_anthropic, parse_responses
from headrace.simulator.request import Limits, Sequence
from headrace.simulator.settings import ServerSettings
from headrace.simulator.sglang import GenerateForm, SGLangMetrics, parse_generate
from headrace.simulator.tokens import MAX_TOKEN_ID, Writer, decode, encode, encode_chat, encode_prompt

_logger = logging.getLogger(__name__)

# A long chat with long documents is a few megabytes; the limit only keeps a mistake from filling the memory.
_MAX_BODY_BYTES = 64 * 1024 * 1024
_EMBEDDING_DIMENSIONS = 64

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ModelServer:
    """One simulated server: its engine, its models, its routes."""

    def __init__(self, settings: ServerSettings, models: Models, version: str) -> None:
        self.settings = settings
        self.models = models
        self.engine = Engine(settings.engine)
        kind = SGLangMetrics if settings.simulates == "sglang" else EngineMetrics
        metrics = kind(self.engine, models.served_names[0], lora_enabled=settings.enable_lora)
        self.loop = EngineLoop(self.engine, metrics)
        self.faults = Faults(self.engine, self.loop, settings.faults)
        self.ready = True
        """False: /health answers 503, and connections are closed after their answer."""
        self.accepting = True
        """False: inference requests are refused with 503."""
        self._page = MetricsPage(metrics)
        # The page of an engine that hangs, as it was when it was first asked for.
        self._frozen: bytes | None = None
        self._version = version
        self._created = int(time.time())
        self._random = random.Random(settings.behaviour.seed)
        self._load = 0

    def application(self) -> web.Application:
        """The aiohttp application. Its runner must be made with `handler_cancellation=True`: see `_stream`."""
        app = web.Application(client_max_size=_MAX_BODY_BYTES, middlewares=[self._page.http.count, self._errors])
        app.on_response_prepare.append(self._mark)
        app.add_routes(
            [
                web.get("/v1/models", self._models),
                web.post("/v1/load_lora_adapter", self._load_lora_adapter),
                web.post("/v1/unload_lora_adapter", self._unload_lora_adapter),
                web.post("/tokenize", self._tokenize),
                web.post("/detokenize", self._detokenize),
                web.post("/reset_prefix_cache", self._reset_prefix_cache),
                web.get("/health", self._health),
                web.get("/ping", self._health),
                web.post("/ping", self._health),
                web.get("/version", self._show_version),
                web.get("/load", self._show_load),
                web.get("/metrics", self._metrics),
            ]
        )
        if self.settings.runner == "pooling":
            app.add_routes([web.post("/v1/embeddings", self._embeddings)])
        else:
            app.add_routes(
                [
                    web.post("/v1/completions", self._completions),
                    web.post("/v1/chat/completions", self._chat_completions),
                    web.post("/v1/responses", self._responses),
                    web.post("/v1/messages", self._messages),
                    web.post("/v1/messages/count_tokens", self._count_tokens),
                    web.post("/inference/v1/generate", self._scale_out),
                ]
            )
        app.add_routes(control_routes(self.settings.faults, self.faults))
        if self.settings.simulates == "sglang":
            app.add_routes(
                [
                    web.post("/generate", self._sglang_generate),
                    web.get("/health_generate", self._health),
                    web.get("/get_model_info", self._model_info),
                ]
            )
        return app

    # ---- every answer

    async def _mark(self, request: web.Request, response: web.StreamResponse) -> None:
        """Say on every answer that it is simulated, and by whom."""
        response.headers[http.SIMULATOR] = "true"
        response.headers[http.SIMULATOR_POD] = self.settings.pod_name
        if request_id := request.headers.get(http.REQUEST_ID):
            response.headers[http.REQUEST_ID] = request_id
        if not self.ready:
            # The next request must go to another server. aiohttp has made the header by now, so both are needed.
            response.headers["connection"] = "close"
            response.force_close()

    @web.middleware
    async def _errors(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except ApiError as error:
            return _json(error.body(), error.status)
        except web.HTTPException as error:  # no such route, wrong method, body too large
            answer = _json({"detail": error.reason}, error.status)
            if "Allow" in error.headers:
                answer.headers["Allow"] = error.headers["Allow"]
            return answer
        except ConnectionError:
            raise  # the client is gone; nobody reads an answer
        except Exception as error:
            _logger.exception("a request failed: %s %s", request.method, request.path)
            message = f"internal error of the simulator: {type(error).__name__}"
            return _json(ApiError(500, message, kind="InternalServerError").body(), 500)

    # ---- inference

    async def _body(self, request: web.Request) -> dict[str, Any]:
        """The JSON object of a request. Raises ApiError."""
        require_json(request.content_type if http.CONTENT_TYPE in request.headers else "")
        body = await request.read()
        self.faults.read(body)
        return parse_json(body)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        wanted = parse_completion(await self._body(request))
        for prompt in wanted.prompts:
            # Only those that came as token ids have no text.
            if not prompt.text and max(prompt.tokens) >= self.settings.vocab_size:
                raise out_of_vocabulary(max(prompt.tokens))
        return await self._generate(request, wanted)

    async def _chat_completions(self, request: web.Request) -> web.StreamResponse:
        wanted = parse_chat(await self._body(request), tools=self.settings.enable_auto_tool_choice)
        return await self._generate(request, wanted)

    async def _responses(self, request: web.Request) -> web.StreamResponse:
        return await self._by_events(request, parse_responses(await self._body(request)), ResponsesForm, "resp_")

    async def _messages(self, request: web.Request) -> web.StreamResponse:
        return await self._by_events(request, parse_anthropic(await self._body(request)), MessagesForm, "chatcmpl-")

    async def _by_events(
        self,
        request: web.Request,
        wanted: GenerationRequest,
        kind: type[ResponsesForm] | type[MessagesForm],
        prefix: str,
    ) -> web.StreamResponse:
        served, created = self._admit(wanted), int(time.time())
        name = prefix + _request_id(request)
        form = kind(request_id=name, model=served.name, created=created, limit=wanted.max_tokens)
        return await self._answer(request, wanted, served, form)

    async def _count_tokens(self, request: web.Request) -> web.StreamResponse:
        wanted = parse_anthropic(await self._body(request), counting=True)
        self.models.find(wanted.model)
        count = len(wanted.prompts[0].tokens)
        return _json({"input_tokens": count, "context_management": {"original_input_tokens": count}})

    async def _scale_out(self, _request: web.Request) -> web.StreamResponse:
        text = "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out to enable them."
        raise ApiError(403, text, kind="PermissionDeniedError")

    async def _sglang_generate(self, request: web.Request) -> web.StreamResponse:
        wanted = parse_generate(await self._body(request))
        served = self._admit(wanted)
        form = GenerateForm(request_id=_request_id(request), model=served.name, created=int(time.time()))
        return await self._answer(request, wanted, served, form)

    async def _generate(self, request: web.Request, wanted: GenerationRequest) -> web.StreamResponse:
        served = self._admit(wanted)
        form = AnswerForm(
            request_id=("chatcmpl-" if wanted.chat else "cmpl-") + _request_id(request),
            model=served.name,
            created=int(time.time()),
            chat=wanted.chat,
            continuous_usage=wanted.continuous_usage,
            usage_follows=wanted.include_usage,
        )
        return await self._answer(request, wanted, served, form)

    async def _answer(
        self, request: web.Request, wanted: GenerationRequest, served: Served, form: AnswerForm
    ) -> web.StreamResponse:
        self._load += 1
        try:
            with Generation(
                self.loop, wanted, adapter=served.adapter, behaviour=self.settings.behaviour, form=form
            ) as generation:
                if wanted.stream:
                    return await self._stream(request, generation, form)
                await self.faults.engine_takes()
                generation.start()
                return web.Response(body=await generation.whole(), content_type="application/json")
        finally:
            self._load -= 1

    def _admit(self, wanted: GenerationRequest | EmbeddingRequest) -> Served:
        """The model of an inference request, or a refusal. Raises ApiError."""
        if not self.accepting:
            raise ApiError(503, "the server is shutting down; send the request to another", kind="ServiceUnavailable")
        served = self.models.find(wanted.model)
        self.faults.admit()
        if self.settings.error_rate and self._random.random() < self.settings.error_rate:
            raise ApiError(500, "simulated failure (--error-rate)", kind="InternalServerError")
        return served

    async def _stream(self, request: web.Request, generation: Generation, form: AnswerForm) -> web.StreamResponse:
        """Send the answer as server-sent events.

        A client that leaves cancels this handler (`handler_cancellation`), or breaks a write; either way the caller's
        `with` frees the engine of the request.
        """
        response = web.StreamResponse(headers={http.CONTENT_TYPE: "text/event-stream; charset=utf-8"})
        # vLLM sends the headers at once too, not with the first token: those of a stuck engine's answers are 200.
        await response.prepare(request)
        await self.faults.engine_takes()
        generation.start()
        try:
            async for events in generation.events():
                await response.write(events)
        except ApiError as error:
            await response.write(b"data: %b\n\n" % orjson.dumps(error.body()))
        await response.write(form.done)
        await response.write_eof()
        return response

    async def _embeddings(self, request: web.Request) -> web.StreamResponse:
        wanted = parse_embedding(await self._body(request))
        served = self._admit(wanted)
        for prompt in wanted.prompts:
            check_length(prompt, 0, self.settings.engine.context_length)
        await self.faults.engine_takes()
        await self._pool([prompt.tokens for prompt in wanted.prompts], served.adapter)
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": embedding(
                    xxhash.xxh3_64_intdigest(prompt.tokens.tobytes()), _EMBEDDING_DIMENSIONS, wanted.base64
                ),
            }
            for index, prompt in enumerate(wanted.prompts)
        ]
        usage = Usage(sum(len(prompt.tokens) for prompt in wanted.prompts), 0)
        answer = {"object": "list", "model": served.name, "data": data, "usage": usage.json()}
        return _json({"id": f"embd-{uuid.uuid4().hex}", "system_fingerprint": SYSTEM_FINGERPRINT, **answer})

    async def _pool(self, prompts: list[array[int]], adapter: str | None) -> None:
        """Compute prompts and write nothing."""
        tickets = []
        self._load += 1
        try:
            for tokens in prompts:
                limits = Limits(max_tokens=0)
                sequence = Sequence(prompt=tokens, adapter=adapter, writer=Writer(0), limits=limits, pooling=True)
                tickets.append(self.loop.submit(sequence, asyncio.Event()))
            for ticket in tickets:
                while not ticket.at_end:
                    ticket.news.clear()
                    await ticket.news.wait()
        finally:
            self._load -= 1
            for ticket in tickets:
                self.loop.leave(ticket)

    # ---- models

    async def _models(self, _request: web.Request) -> web.StreamResponse:
        return _json(self.models.listing(self._created, self.settings.engine.context_length))

    async def _load_lora_adapter(self, request: web.Request) -> web.StreamResponse:
        self._require_runtime_lora()
        name = self.models.load(await self._body(request))
        _logger.info("adapter loaded", extra={"adapter": name})
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload_lora_adapter(self, request: web.Request) -> web.StreamResponse:
        self._require_runtime_lora()
        name = self.models.unload(await self._body(request))
        self.engine.forget_adapter(name)
        _logger.info("adapter unloaded", extra={"adapter": name})
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    def _require_runtime_lora(self) -> None:
        if not (self.settings.enable_lora and self.settings.runtime_lora):
            raise ApiError(
                404,
                "adapters are fixed here; start with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True",
                kind="NotFoundError",
            )

    # ---- the tokenizer

    async def _tokenize(self, request: web.Request) -> web.StreamResponse:
        body = await self._body(request)
        self.models.find(body.get("model") if isinstance(body.get("model"), str) else None)
        prompt = body.get("prompt")
        if prompt is None:
            tokens = encode_chat(parse_messages(body))
        elif isinstance(prompt, str):
            tokens = encode(prompt) if body.get("add_special_tokens") is False else encode_prompt(prompt)
        else:
            raise wrong_type("prompt", prompt, "give a string, or a chat's 'messages'")
        length = self.settings.engine.context_length
        texts = [decode([token]) for token in tokens] if body.get("return_token_strs") else None
        return _json({"count": len(tokens), "max_model_len": length, "tokens": tokens.tolist(), "token_strs": texts})

    async def _detokenize(self, request: web.Request) -> web.StreamResponse:
        tokens = (await self._body(request)).get("tokens")
        if not isinstance(tokens, list) or not all(
            type(token) is int and 0 <= token <= MAX_TOKEN_ID for token in tokens
        ):
            raise wrong_type("tokens", tokens, "give a list of token ids")
        return _json({"prompt": decode(tokens)})

    # ---- the process

    async def _reset_prefix_cache(self, _request: web.Request) -> web.StreamResponse:
        return _json({"success": self.engine.reset_prefix_cache()})

    async def _health(self, _request: web.Request) -> web.StreamResponse:
        return web.Response(status=200 if self.ready else 503)

    async def _show_version(self, _request: web.Request) -> web.StreamResponse:
        simulates = {"vllm": "vllm 0.32.0", "sglang": "sglang 0.5"}[self.settings.simulates]
        return _json({"version": f"headrace-simulator-{self._version}", "simulator": True, "simulates": simulates})

    async def _model_info(self, _request: web.Request) -> web.StreamResponse:
        return _json({"model_path": self.models.served_names[0], "is_generation": True})

    async def _show_load(self, _request: web.Request) -> web.StreamResponse:
        return _json({"server_load": self._load if self.settings.load_tracking else 0})

    async def _metrics(self, _request: web.Request) -> web.StreamResponse:
        self._frozen = (self._frozen or self._page.render()) if self.faults.hung else None
        return web.Response(body=self._frozen or self._page.render(), headers={http.CONTENT_TYPE: CONTENT_TYPE})


def _request_id(request: web.Request) -> str:
    # A header's bytes need not be UTF-8; JSON is.
    return (request.headers.get(http.REQUEST_ID) or uuid.uuid4().hex).encode("utf-8", "replace").decode()


def _json(body: dict[str, Any], status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")
