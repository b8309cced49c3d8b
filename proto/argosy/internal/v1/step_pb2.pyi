from argosy.internal.v1 import replica_pb2 as _replica_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WorkerMessage(_message.Message):
    __slots__ = ("hello", "report", "output")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    hello: WorkerHello
    report: WorkerReport
    output: StepOutput
    def __init__(self, hello: _Optional[_Union[WorkerHello, _Mapping]] = ..., report: _Optional[_Union[WorkerReport, _Mapping]] = ..., output: _Optional[_Union[StepOutput, _Mapping]] = ...) -> None: ...

class WorkerHello(_message.Message):
    __slots__ = ("secret", "epoch", "stage", "tensor_rank", "pid", "node")
    SECRET_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    TENSOR_RANK_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    secret: bytes
    epoch: int
    stage: int
    tensor_rank: int
    pid: int
    node: str
    def __init__(self, secret: _Optional[bytes] = ..., epoch: _Optional[int] = ..., stage: _Optional[int] = ..., tensor_rank: _Optional[int] = ..., pid: _Optional[int] = ..., node: _Optional[str] = ...) -> None: ...

class WorkerReport(_message.Message):
    __slots__ = ("phase", "loaded_bytes", "total_bytes", "step", "phase_seconds", "failure", "progress", "rendezvous_address", "where", "figures")
    class PhaseSecondsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    PHASE_FIELD_NUMBER: _ClassVar[int]
    LOADED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    PHASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    RENDEZVOUS_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    phase: str
    loaded_bytes: int
    total_bytes: int
    step: int
    phase_seconds: _containers.ScalarMap[str, float]
    failure: str
    progress: int
    rendezvous_address: str
    where: str
    figures: RankFigures
    def __init__(self, phase: _Optional[str] = ..., loaded_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ..., step: _Optional[int] = ..., phase_seconds: _Optional[_Mapping[str, float]] = ..., failure: _Optional[str] = ..., progress: _Optional[int] = ..., rendezvous_address: _Optional[str] = ..., where: _Optional[str] = ..., figures: _Optional[_Union[RankFigures, _Mapping]] = ...) -> None: ...

class RankFigures(_message.Message):
    __slots__ = ("prefill", "decode", "collective_seconds", "receive_seconds", "peak_flops", "peak_bytes")
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    COLLECTIVE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RECEIVE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PEAK_FLOPS_FIELD_NUMBER: _ClassVar[int]
    PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    prefill: PhaseFigures
    decode: PhaseFigures
    collective_seconds: float
    receive_seconds: float
    peak_flops: float
    peak_bytes: float
    def __init__(self, prefill: _Optional[_Union[PhaseFigures, _Mapping]] = ..., decode: _Optional[_Union[PhaseFigures, _Mapping]] = ..., collective_seconds: _Optional[float] = ..., receive_seconds: _Optional[float] = ..., peak_flops: _Optional[float] = ..., peak_bytes: _Optional[float] = ...) -> None: ...

class PhaseFigures(_message.Message):
    __slots__ = ("steps", "busy_seconds", "flops", "memory_bytes")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    BUSY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    FLOPS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    steps: int
    busy_seconds: float
    flops: float
    memory_bytes: float
    def __init__(self, steps: _Optional[int] = ..., busy_seconds: _Optional[float] = ..., flops: _Optional[float] = ..., memory_bytes: _Optional[float] = ...) -> None: ...

class EngineMessage(_message.Message):
    __slots__ = ("step", "stop", "rendezvous")
    STEP_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    RENDEZVOUS_FIELD_NUMBER: _ClassVar[int]
    step: StepInput
    stop: Stop
    rendezvous: Rendezvous
    def __init__(self, step: _Optional[_Union[StepInput, _Mapping]] = ..., stop: _Optional[_Union[Stop, _Mapping]] = ..., rendezvous: _Optional[_Union[Rendezvous, _Mapping]] = ...) -> None: ...

class Stop(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Rendezvous(_message.Message):
    __slots__ = ("address",)
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    address: str
    def __init__(self, address: _Optional[str] = ...) -> None: ...

class StepInput(_message.Message):
    __slots__ = ("step", "epoch", "closed_slots", "opened", "row_slots", "row_num_tokens", "row_start_positions", "token_ids", "row_num_new_blocks", "new_block_ids", "row_samples", "masks", "block_copies")
    STEP_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CLOSED_SLOTS_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    ROW_SLOTS_FIELD_NUMBER: _ClassVar[int]
    ROW_NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ROW_START_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    ROW_NUM_NEW_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NEW_BLOCK_IDS_FIELD_NUMBER: _ClassVar[int]
    ROW_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    MASKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_COPIES_FIELD_NUMBER: _ClassVar[int]
    step: int
    epoch: int
    closed_slots: bytes
    opened: _containers.RepeatedCompositeFieldContainer[SlotOpened]
    row_slots: bytes
    row_num_tokens: bytes
    row_start_positions: bytes
    token_ids: bytes
    row_num_new_blocks: bytes
    new_block_ids: bytes
    row_samples: bytes
    masks: _containers.RepeatedCompositeFieldContainer[RowMask]
    block_copies: bytes
    def __init__(self, step: _Optional[int] = ..., epoch: _Optional[int] = ..., closed_slots: _Optional[bytes] = ..., opened: _Optional[_Iterable[_Union[SlotOpened, _Mapping]]] = ..., row_slots: _Optional[bytes] = ..., row_num_tokens: _Optional[bytes] = ..., row_start_positions: _Optional[bytes] = ..., token_ids: _Optional[bytes] = ..., row_num_new_blocks: _Optional[bytes] = ..., new_block_ids: _Optional[bytes] = ..., row_samples: _Optional[bytes] = ..., masks: _Optional[_Iterable[_Union[RowMask, _Mapping]]] = ..., block_copies: _Optional[bytes] = ...) -> None: ...

class SlotOpened(_message.Message):
    __slots__ = ("slot", "sampling", "choice", "num_prompt_tokens", "history", "num_generated", "top_logprobs", "suppressed_token_ids", "min_tokens")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    NUM_GENERATED_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    SUPPRESSED_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    slot: int
    sampling: _replica_pb2.SamplingSpec
    choice: int
    num_prompt_tokens: int
    history: bytes
    num_generated: int
    top_logprobs: int
    suppressed_token_ids: bytes
    min_tokens: int
    def __init__(self, slot: _Optional[int] = ..., sampling: _Optional[_Union[_replica_pb2.SamplingSpec, _Mapping]] = ..., choice: _Optional[int] = ..., num_prompt_tokens: _Optional[int] = ..., history: _Optional[bytes] = ..., num_generated: _Optional[int] = ..., top_logprobs: _Optional[int] = ..., suppressed_token_ids: _Optional[bytes] = ..., min_tokens: _Optional[int] = ...) -> None: ...

class RowMask(_message.Message):
    __slots__ = ("row", "mask")
    ROW_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    row: int
    mask: bytes
    def __init__(self, row: _Optional[int] = ..., mask: _Optional[bytes] = ...) -> None: ...

class StepOutput(_message.Message):
    __slots__ = ("step", "epoch", "slots", "token_ids", "logprobs", "seconds", "compute_seconds")
    STEP_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    step: int
    epoch: int
    slots: bytes
    token_ids: bytes
    logprobs: _containers.RepeatedCompositeFieldContainer[_replica_pb2.TokenLogprobsData]
    seconds: float
    compute_seconds: float
    def __init__(self, step: _Optional[int] = ..., epoch: _Optional[int] = ..., slots: _Optional[bytes] = ..., token_ids: _Optional[bytes] = ..., logprobs: _Optional[_Iterable[_Union[_replica_pb2.TokenLogprobsData, _Mapping]]] = ..., seconds: _Optional[float] = ..., compute_seconds: _Optional[float] = ...) -> None: ...
