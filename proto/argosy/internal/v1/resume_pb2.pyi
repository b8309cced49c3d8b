from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class ResumeTicket(_message.Message):
    __slots__ = ("request_id", "tenant", "seed", "digest", "expires_at", "generation", "region")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    tenant: str
    seed: int
    digest: bytes
    expires_at: float
    generation: int
    region: str
    def __init__(self, request_id: _Optional[str] = ..., tenant: _Optional[str] = ..., seed: _Optional[int] = ..., digest: _Optional[bytes] = ..., expires_at: _Optional[float] = ..., generation: _Optional[int] = ..., region: _Optional[str] = ...) -> None: ...
