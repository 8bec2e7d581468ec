from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class PostTranslateModifyRequest(_message.Message):
    __slots__ = ("post_translate_context", "clusters", "secrets", "listeners", "routes")
    POST_TRANSLATE_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    CLUSTERS_FIELD_NUMBER: _ClassVar[int]
    SECRETS_FIELD_NUMBER: _ClassVar[int]
    LISTENERS_FIELD_NUMBER: _ClassVar[int]
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    post_translate_context: bytes
    clusters: _containers.RepeatedScalarFieldContainer[bytes]
    secrets: _containers.RepeatedScalarFieldContainer[bytes]
    listeners: _containers.RepeatedScalarFieldContainer[bytes]
    routes: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, post_translate_context: _Optional[bytes] = ..., clusters: _Optional[_Iterable[bytes]] = ..., secrets: _Optional[_Iterable[bytes]] = ..., listeners: _Optional[_Iterable[bytes]] = ..., routes: _Optional[_Iterable[bytes]] = ...) -> None: ...

class PostTranslateModifyResponse(_message.Message):
    __slots__ = ("clusters", "secrets", "listeners", "routes")
    CLUSTERS_FIELD_NUMBER: _ClassVar[int]
    SECRETS_FIELD_NUMBER: _ClassVar[int]
    LISTENERS_FIELD_NUMBER: _ClassVar[int]
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    clusters: _containers.RepeatedScalarFieldContainer[bytes]
    secrets: _containers.RepeatedScalarFieldContainer[bytes]
    listeners: _containers.RepeatedScalarFieldContainer[bytes]
    routes: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, clusters: _Optional[_Iterable[bytes]] = ..., secrets: _Optional[_Iterable[bytes]] = ..., listeners: _Optional[_Iterable[bytes]] = ..., routes: _Optional[_Iterable[bytes]] = ...) -> None: ...
