from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LeaseRequest(_message.Message):
    __slots__ = ("region", "tenant", "slices")
    REGION_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    region: str
    tenant: str
    slices: _containers.RepeatedCompositeFieldContainer[SliceAsk]
    def __init__(self, region: _Optional[str] = ..., tenant: _Optional[str] = ..., slices: _Optional[_Iterable[_Union[SliceAsk, _Mapping]]] = ...) -> None: ...

class SliceAsk(_message.Message):
    __slots__ = ("kind", "bucket", "version", "wanted", "used")
    KIND_FIELD_NUMBER: _ClassVar[int]
    BUCKET_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    kind: str
    bucket: int
    version: int
    wanted: int
    used: int
    def __init__(self, kind: _Optional[str] = ..., bucket: _Optional[int] = ..., version: _Optional[int] = ..., wanted: _Optional[int] = ..., used: _Optional[int] = ...) -> None: ...

class LeaseResponse(_message.Message):
    __slots__ = ("slices",)
    SLICES_FIELD_NUMBER: _ClassVar[int]
    slices: _containers.RepeatedCompositeFieldContainer[SliceGrant]
    def __init__(self, slices: _Optional[_Iterable[_Union[SliceGrant, _Mapping]]] = ...) -> None: ...

class SliceGrant(_message.Message):
    __slots__ = ("granted", "version")
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    granted: int
    version: int
    def __init__(self, granted: _Optional[int] = ..., version: _Optional[int] = ...) -> None: ...
