from headrace.xds.envoy.type.matcher.v3 import string_pb2 as _string_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PathMatcher(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: _string_pb2.StringMatcher
    def __init__(self, path: _Optional[_Union[_string_pb2.StringMatcher, _Mapping]] = ...) -> None: ...
