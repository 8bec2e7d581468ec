"""Every pair of modes, any chunking: what arrives is what was sent save for what was asked, ended once, in order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Decision, Refusal, RefusalReason
from headrace.extproc import BodyMode, Usage, request_body
from headrace.extproc.events import PickNeeded, ResponseChunk, ResponseEnded, ResponseStarted
from headrace.extproc.request_body import WHOLE_BYTES
from headrace.xds.envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from . import messages as m
from .messages import DESTINATION, PICK, REQUEST, Gateway
from .proxy import Passed, pass_through
from .test_conversation import UNTRUSTED
from .test_model_name import CUTS, OBJECTS, cut, expected

MODES = st.sampled_from([mode for mode in BodyMode if mode is not BodyMode.GRPC])
SHOWN = st.sampled_from([BodyMode.FULL_DUPLEX_STREAMED, BodyMode.BUFFERED, BodyMode.STREAMED])
RANK = {"headers": 0, "body": 1, "trailers": 2}
CLIENTS = {**REQUEST, DESTINATION: "10.9.9.9:1", f"{DESTINATION}-served": "x", f"{DESTINATION}-subset": "y"}


@pytest.fixture(autouse=True, scope="module", params=[WHOLE_BYTES, 40], ids=["read at once", "scanned"])
def whole_bytes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test of bodies up to this size that are read at once, and of those that are scanned."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(request_body, "WHOLE_BYTES", request.param)
        yield


def check_order(passed: Passed, *, trailers: bool) -> None:
    ranks = [RANK[kind] for kind in passed.order]
    assert ranks == sorted(ranks)
    assert ranks.count(0) == 1
    assert passed.ends == (0 if trailers else 1)


@given(
    modes=st.tuples(MODES, MODES),
    content=st.binary(max_size=200) | OBJECTS.map(lambda d: json.dumps({**d, "model": "asked"}).encode()),
    cuts=CUTS,
    bodyless=st.booleans(),
    trailers=st.booleans(),
    limit=st.integers(1, 300),
    reorder=st.booleans(),
    reply=st.binary(max_size=200),
    reply_cuts=CUTS,
    reply_trailers=st.booleans(),
    streaming=st.booleans(),
)
def test_without_a_rewrite_every_byte_passes(
    modes: tuple[BodyMode, BodyMode],
    content: bytes,
    cuts: list[int],
    bodyless: bool,
    trailers: bool,
    limit: int,
    reorder: bool,
    reply: bytes,
    reply_cuts: list[int],
    reply_trailers: bool,
    streaming: bool,
) -> None:
    gateway = Gateway(reorder=reorder)
    headers = {**CLIENTS, ":path": "/anything"}
    pieces = [] if bodyless else cut(content, cuts)
    sent = pass_through(gateway, "request", headers, pieces, modes=modes, trailers=trailers, partial_limit=limit)
    assert sent.body == (b"" if bodyless else content)
    check_order(sent, trailers=trailers)
    metadata = [m.picked_metadata(a) for a in gateway.answers if a.HasField("dynamic_metadata")]
    assert metadata == [PICK]
    picks = [event for event in gateway.events if isinstance(event, PickNeeded)]
    assert len(picks) == 1
    assert not UNTRUSTED & set(picks[0].request.headers)
    left = {name: value for name, value in sent.headers.items() if name.startswith(DESTINATION)}
    # With nothing but trailers after them, buffered headers were answered before the pick: the metadata has it alone.
    assert left in ({DESTINATION: PICK}, {})
    assert left or (not sent.body and trailers and modes[0] in (BodyMode.BUFFERED, BodyMode.BUFFERED_PARTIAL))
    assert gateway.stream.request_done or modes[0] is BodyMode.STREAMED

    kind = "text/event-stream" if streaming else "application/json"
    back = pass_through(
        gateway,
        "response",
        {":status": "200", "content-type": kind, "content-length": str(len(reply))},
        cut(reply, reply_cuts),
        modes=modes,
        trailers=reply_trailers,
    )
    assert back.body == reply
    check_order(back, trailers=reply_trailers)
    assert back.headers["content-length"] == str(len(reply))
    seen = [event for event in gateway.events if isinstance(event, ResponseEnded)]
    assert len(seen) == (modes[1] is not BodyMode.NONE or reply_trailers)


@given(
    modes=st.tuples(SHOWN | MODES, SHOWN | MODES),
    document=OBJECTS,
    asked=st.text(min_size=1, max_size=10),
    target=st.text(max_size=10),
    cuts=CUTS,
    trailers=st.booleans(),
    replies=st.lists(OBJECTS | OBJECTS.map(lambda d: {**d, "model": "target"}), min_size=1, max_size=3),
    reply_cuts=CUTS,
    reply_trailers=st.booleans(),
    streaming=st.booleans(),
    encoded=st.booleans(),
)
def test_a_rewritten_model_goes_in_and_the_clients_comes_back(
    modes: tuple[BodyMode, BodyMode],
    document: dict[str, Any],
    asked: str,
    target: str,
    cuts: list[int],
    trailers: bool,
    replies: list[dict[str, Any]],
    reply_cuts: list[int],
    reply_trailers: bool,
    streaming: bool,
    encoded: bool,
) -> None:
    gateway = Gateway(outcome=Decision((PICK,), model=target))
    document["model"] = asked
    content = json.dumps(document).encode()
    sent = pass_through(gateway, "request", REQUEST, cut(content, cuts), modes=modes, trailers=trailers)
    shown = modes[0] not in (BodyMode.NONE, BodyMode.STREAMED)
    assert json.loads(sent.body) == ({**document, "model": target} if shown else document)
    check_order(sent, trailers=trailers)
    if "content-length" in sent.headers:
        assert sent.headers["content-length"] == str(len(sent.body))

    if streaming:
        reply = "".join(f"data: {json.dumps(entry)}\n\n" for entry in replies).encode()
    else:
        reply = json.dumps(replies[0]).encode()
    headers = {
        ":status": "200",
        "content-type": "text/event-stream; charset=utf-8" if streaming else "application/json",
        "content-length": str(len(reply)),
        **({"content-encoding": "gzip"} if encoded else {}),
    }
    back = pass_through(gateway, "response", headers, cut(reply, reply_cuts), modes=modes, trailers=reply_trailers)
    check_order(back, trailers=reply_trailers)
    changes = shown and not encoded and modes[1] is not BodyMode.NONE and asked != target
    wanted = [expected(entry, asked) if changes else entry for entry in replies]
    if streaming:
        assert [json.loads(line[6:]) for line in back.body.split(b"\n") if line] == wanted
    else:
        assert json.loads(back.body) == wanted[0]
    if "content-length" in back.headers:
        assert back.headers["content-length"] == str(len(back.body))
    else:
        assert changes


@pytest.mark.parametrize("mode", [BodyMode.FULL_DUPLEX_STREAMED, BodyMode.STREAMED, BodyMode.BUFFERED])
def test_the_length_of_a_changed_response_is_not_the_old_one(mode: BodyMode) -> None:
    gateway = Gateway(outcome=Decision((PICK,), model="target"))
    modes = (BodyMode.BUFFERED, mode)
    pass_through(gateway, "request", REQUEST, [b'{"model":"a longer name"}'], modes=modes, trailers=False)
    reply = b'{"model":"target"}'
    headers = {":status": "200", "content-type": "application/json", "content-length": str(len(reply))}
    back = pass_through(gateway, "response", headers, [reply[:9], reply[9:]], modes=modes, trailers=False)
    assert back.body == b'{"model":"a longer name"}'
    assert back.headers.get("content-length") == (str(len(back.body)) if mode is BodyMode.BUFFERED else None)


USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 8}}


@pytest.mark.parametrize("mode", [mode for mode in BodyMode if mode not in (BodyMode.NONE, BodyMode.GRPC)])
@pytest.mark.parametrize("streaming", [True, False])
@given(cuts=CUTS, trailers=st.booleans(), observed=st.booleans())
def test_usage_is_read_where_bodies_are_seen(
    mode: BodyMode, streaming: bool, cuts: list[int], trailers: bool, observed: bool
) -> None:
    gateway = Gateway()
    fields = {"observability_mode": True} if observed else {}
    gateway.send(m.request_headers(end_of_stream=True, protocol_config=m.config(BodyMode.NONE, mode), **fields))
    document = json.dumps({"model": "m", "usage": USAGE})
    reply = (f"data: {document}\n\ndata: [DONE]\n\n" if streaming else document).encode()
    kind = "text/event-stream" if streaming else "application/json; charset=utf-8"
    gateway.send(m.response_headers({":status": "200", "content-type": kind}))
    pieces = cut(reply, cuts)
    for number, piece in enumerate(pieces):
        answers = gateway.send(m.body("response_body", piece, not trailers and number == len(pieces) - 1))
        assert not (observed and answers)
    if trailers:
        gateway.send(m.trailers("response_trailers"))
    assert ResponseStarted(200, "", streaming) in gateway.events
    assert sum(e.size for e in gateway.events if isinstance(e, ResponseChunk)) == len(reply)
    assert [e for e in gateway.events if isinstance(e, ResponseEnded)] == [ResponseEnded(Usage(9, 4, 8))]


@given(modes=st.tuples(MODES, MODES), cuts=CUTS, trailers=st.booleans(), status=st.sampled_from([400, 429, 503]))
def test_a_refusal_is_one_answer_in_every_mode(
    modes: tuple[BodyMode, BodyMode], cuts: list[int], trailers: bool, status: int
) -> None:
    gateway = Gateway(outcome=Refusal(status, RefusalReason.SATURATED, "no"))
    pieces = cut(b'{"model":"m","prompt":"x"}', cuts)
    if modes[0] is BodyMode.STREAMED or modes[0] is BodyMode.NONE:
        pieces = []  # a proxy that has its answer shows nothing more
    sent = pass_through(gateway, "request", REQUEST, pieces, modes=modes, trailers=trailers and bool(pieces))
    assert sent.refused == status
    refusals = [a for a in gateway.answers if a.HasField("immediate_response")]
    assert len(refusals) == 1
    headers = m.set_headers(refusals[0].immediate_response.headers)
    assert headers["x-llm-d-request-dropped-reason"] == "rejected-saturated"
    assert json.loads(refusals[0].immediate_response.body)["error"]["message"] == "no"


def test_twenty_megabytes_in_small_pieces() -> None:
    gateway = Gateway(outcome=Decision((PICK,), model="target"), settings=m.settings(max_parsed_body_bytes=64 << 20))
    content = json.dumps({"prompt": "é\n" * (4 << 20), "model": "asked"}).encode()
    assert len(content) > 20 << 20
    pieces = [content[at : at + 16_384] for at in range(0, len(content), 16_384)]
    modes = (BodyMode.FULL_DUPLEX_STREAMED, BodyMode.FULL_DUPLEX_STREAMED)
    sent = pass_through(gateway, "request", REQUEST, pieces, modes=modes, trailers=False)
    assert sent.body == content.replace(b'"model": "asked"', b'"model": "target"')
    assert sent.headers["content-length"] == str(len(sent.body))
    back = pass_through(
        gateway,
        "response",
        {":status": "200", "content-type": "application/json"},
        [*pieces, b""],
        modes=modes,
        trailers=False,
    )
    assert back.body == content


CONTROL = {
    "x-slo-ttft-ms": "250",
    "x-llm-d-slo-ttft-ms": "200.5",
    "x-slo-tpot-ms": "20",
    "x-gateway-model-name-rewrite": "other",
    "x-gateway-inference-objective": "batch",
    "x-gateway-inference-fairness-id": "tenant",
}


def test_control_headers_are_inputs_that_can_be_switched_off() -> None:
    on, off = Gateway(), Gateway(settings=m.settings(control_headers=False))
    for gateway in (on, off):
        gateway.send(m.request_headers({**REQUEST, **CONTROL}, end_of_stream=True))
    request = on.pick.request
    assert (request.slo_ttft_ms, request.slo_tpot_ms, request.wanted_model) == (200.5, 20.0, "other")
    assert (request.objective, request.fairness_id) == ("batch", "tenant")
    request = off.pick.request
    assert (request.slo_ttft_ms, request.slo_tpot_ms, request.wanted_model) == (None, None, "")
    assert (request.objective, request.fairness_id) == ("", "")
    # Whoever goes by a request, goes by what is allowed in it.
    assert not set(request.headers) & set(CONTROL)
    assert request.headers[":path"] == on.pick.request.headers[":path"]


@pytest.mark.parametrize("text", ["", "x", "-1", "0", "nan", "inf", "1e400", "1_0 0"])
def test_a_latency_that_is_none_asks_for_nothing(text: str) -> None:
    gateway = Gateway()
    gateway.send(m.request_headers({**REQUEST, "x-slo-ttft-ms": text}, end_of_stream=True))
    assert gateway.pick.request.slo_ttft_ms is None
    other = Gateway()
    other.send(m.request_headers({**REQUEST, "x-llm-d-slo-ttft-ms": text, "x-slo-ttft-ms": "250"}, end_of_stream=True))
    assert other.pick.request.slo_ttft_ms == 250.0


def test_a_model_that_cannot_be_put_in_leaves_the_body_alone() -> None:
    gateway = Gateway(outcome=Decision((PICK,), model="target"))
    config = m.config(BodyMode.BUFFERED_PARTIAL)
    gateway.send(m.request_headers(protocol_config=config))
    # Cut before the key that the pick was told of; it occurs in the prompt only.
    (answer,) = gateway.send(m.body("request_body", b'{"prompt": {"model": "asked", "x": "', False))
    assert answer.WhichOneof("response") == "request_body"
    assert not answer.request_body.response.HasField("body_mutation")
    assert isinstance(answer, pb.ProcessingResponse)
