from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FollowRequest(_message.Message):
    __slots__ = ("replica", "pool", "prefixes")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    PREFIXES_FIELD_NUMBER: _ClassVar[int]
    replica: str
    pool: str
    prefixes: bool
    def __init__(self, replica: _Optional[str] = ..., pool: _Optional[str] = ..., prefixes: _Optional[bool] = ...) -> None: ...

class Update(_message.Message):
    __slots__ = ("replica", "sequence", "reset", "made_at", "changes", "sent", "name", "failures")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    RESET_FIELD_NUMBER: _ClassVar[int]
    MADE_AT_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    SENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    replica: str
    sequence: int
    reset: bool
    made_at: float
    changes: _containers.RepeatedCompositeFieldContainer[Change]
    sent: _containers.RepeatedCompositeFieldContainer[Sent]
    name: str
    failures: _containers.RepeatedCompositeFieldContainer[Failure]
    def __init__(self, replica: _Optional[str] = ..., sequence: _Optional[int] = ..., reset: _Optional[bool] = ..., made_at: _Optional[float] = ..., changes: _Optional[_Iterable[_Union[Change, _Mapping]]] = ..., sent: _Optional[_Iterable[_Union[Sent, _Mapping]]] = ..., name: _Optional[str] = ..., failures: _Optional[_Iterable[_Union[Failure, _Mapping]]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("endpoint", "flow", "first_block", "served")
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    FLOW_FIELD_NUMBER: _ClassVar[int]
    FIRST_BLOCK_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    endpoint: str
    flow: str
    first_block: int
    served: str
    def __init__(self, endpoint: _Optional[str] = ..., flow: _Optional[str] = ..., first_block: _Optional[int] = ..., served: _Optional[str] = ...) -> None: ...

class Change(_message.Message):
    __slots__ = ("started", "moved", "finished")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    started: Started
    moved: Moved
    finished: int
    def __init__(self, started: _Optional[_Union[Started, _Mapping]] = ..., moved: _Optional[_Union[Moved, _Mapping]] = ..., finished: _Optional[int] = ...) -> None: ...

class Started(_message.Message):
    __slots__ = ("number", "request_id", "endpoint", "picked_for", "model", "bytes", "tokens", "output_tokens", "age_seconds", "elsewhere", "pick_replica", "pick_number", "asked_model", "slo_ttft_ms", "slo_tpot_ms", "flow", "priority")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    PICKED_FOR_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ELSEWHERE_FIELD_NUMBER: _ClassVar[int]
    PICK_REPLICA_FIELD_NUMBER: _ClassVar[int]
    PICK_NUMBER_FIELD_NUMBER: _ClassVar[int]
    ASKED_MODEL_FIELD_NUMBER: _ClassVar[int]
    SLO_TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    SLO_TPOT_MS_FIELD_NUMBER: _ClassVar[int]
    FLOW_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    number: int
    request_id: str
    endpoint: str
    picked_for: str
    model: str
    bytes: int
    tokens: int
    output_tokens: int
    age_seconds: float
    elsewhere: bool
    pick_replica: str
    pick_number: int
    asked_model: str
    slo_ttft_ms: float
    slo_tpot_ms: float
    flow: str
    priority: int
    def __init__(self, number: _Optional[int] = ..., request_id: _Optional[str] = ..., endpoint: _Optional[str] = ..., picked_for: _Optional[str] = ..., model: _Optional[str] = ..., bytes: _Optional[int] = ..., tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., age_seconds: _Optional[float] = ..., elsewhere: _Optional[bool] = ..., pick_replica: _Optional[str] = ..., pick_number: _Optional[int] = ..., asked_model: _Optional[str] = ..., slo_ttft_ms: _Optional[float] = ..., slo_tpot_ms: _Optional[float] = ..., flow: _Optional[str] = ..., priority: _Optional[int] = ...) -> None: ...

class Moved(_message.Message):
    __slots__ = ("number", "endpoint", "tokens")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    number: int
    endpoint: str
    tokens: int
    def __init__(self, number: _Optional[int] = ..., endpoint: _Optional[str] = ..., tokens: _Optional[int] = ...) -> None: ...

class Sent(_message.Message):
    __slots__ = ("endpoint", "block_bytes", "blocks")
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    endpoint: str
    block_bytes: int
    blocks: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, endpoint: _Optional[str] = ..., block_bytes: _Optional[int] = ..., blocks: _Optional[_Iterable[int]] = ...) -> None: ...
