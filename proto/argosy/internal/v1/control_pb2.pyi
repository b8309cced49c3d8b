import datetime

from argosy.internal.v1 import replica_pb2 as _replica_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from argosy.internal.v1 import step_pb2 as _step_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReplicaState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REPLICA_STATE_UNSPECIFIED: _ClassVar[ReplicaState]
    REPLICA_STATE_PENDING: _ClassVar[ReplicaState]
    REPLICA_STATE_LOADING: _ClassVar[ReplicaState]
    REPLICA_STATE_READY: _ClassVar[ReplicaState]
    REPLICA_STATE_DRAINING: _ClassVar[ReplicaState]
    REPLICA_STATE_FAILED: _ClassVar[ReplicaState]

class ApplyAction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    APPLY_ACTION_UNSPECIFIED: _ClassVar[ApplyAction]
    APPLY_ACTION_START: _ClassVar[ApplyAction]
    APPLY_ACTION_REPLACE: _ClassVar[ApplyAction]
    APPLY_ACTION_STOP: _ClassVar[ApplyAction]

class ApplyState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    APPLY_STATE_UNSPECIFIED: _ClassVar[ApplyState]
    APPLY_STATE_RUNNING: _ClassVar[ApplyState]
    APPLY_STATE_DONE: _ClassVar[ApplyState]
    APPLY_STATE_TAKEN_BACK: _ClassVar[ApplyState]
REPLICA_STATE_UNSPECIFIED: ReplicaState
REPLICA_STATE_PENDING: ReplicaState
REPLICA_STATE_LOADING: ReplicaState
REPLICA_STATE_READY: ReplicaState
REPLICA_STATE_DRAINING: ReplicaState
REPLICA_STATE_FAILED: ReplicaState
APPLY_ACTION_UNSPECIFIED: ApplyAction
APPLY_ACTION_START: ApplyAction
APPLY_ACTION_REPLACE: ApplyAction
APPLY_ACTION_STOP: ApplyAction
APPLY_STATE_UNSPECIFIED: ApplyState
APPLY_STATE_RUNNING: ApplyState
APPLY_STATE_DONE: ApplyState
APPLY_STATE_TAKEN_BACK: ApplyState

class WatchReplicasRequest(_message.Message):
    __slots__ = ("router_id", "wants_prefixes", "metrics_address")
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    WANTS_PREFIXES_FIELD_NUMBER: _ClassVar[int]
    METRICS_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    router_id: str
    wants_prefixes: bool
    metrics_address: str
    def __init__(self, router_id: _Optional[str] = ..., wants_prefixes: _Optional[bool] = ..., metrics_address: _Optional[str] = ...) -> None: ...

class WatchReplicasResponse(_message.Message):
    __slots__ = ("region", "version", "replicas", "drain", "models")
    REGION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    region: str
    version: int
    replicas: _containers.RepeatedCompositeFieldContainer[DirectoryEntry]
    drain: bool
    models: _containers.RepeatedCompositeFieldContainer[WantedModel]
    def __init__(self, region: _Optional[str] = ..., version: _Optional[int] = ..., replicas: _Optional[_Iterable[_Union[DirectoryEntry, _Mapping]]] = ..., drain: _Optional[bool] = ..., models: _Optional[_Iterable[_Union[WantedModel, _Mapping]]] = ...) -> None: ...

class WantedModel(_message.Message):
    __slots__ = ("name", "section")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SECTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    section: str
    def __init__(self, name: _Optional[str] = ..., section: _Optional[str] = ...) -> None: ...

class DirectoryEntry(_message.Message):
    __slots__ = ("replica_id", "model", "address", "epoch", "load", "coefficients", "prefixes")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    COEFFICIENTS_FIELD_NUMBER: _ClassVar[int]
    PREFIXES_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    model: str
    address: str
    epoch: int
    load: _replica_pb2.Load
    coefficients: StepCoefficients
    prefixes: PrefixSummary
    def __init__(self, replica_id: _Optional[str] = ..., model: _Optional[str] = ..., address: _Optional[str] = ..., epoch: _Optional[int] = ..., load: _Optional[_Union[_replica_pb2.Load, _Mapping]] = ..., coefficients: _Optional[_Union[StepCoefficients, _Mapping]] = ..., prefixes: _Optional[_Union[PrefixSummary, _Mapping]] = ...) -> None: ...

class PrefixSummary(_message.Message):
    __slots__ = ("version", "level", "names")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    version: int
    level: int
    names: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, version: _Optional[int] = ..., level: _Optional[int] = ..., names: _Optional[_Iterable[int]] = ...) -> None: ...

class StepCoefficients(_message.Message):
    __slots__ = ("prefill_base", "prefill_per_token", "prefill_per_token_context", "decode_base", "decode_per_sequence", "decode_per_context_token")
    PREFILL_BASE_FIELD_NUMBER: _ClassVar[int]
    PREFILL_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    PREFILL_PER_TOKEN_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    DECODE_BASE_FIELD_NUMBER: _ClassVar[int]
    DECODE_PER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    DECODE_PER_CONTEXT_TOKEN_FIELD_NUMBER: _ClassVar[int]
    prefill_base: float
    prefill_per_token: float
    prefill_per_token_context: float
    decode_base: float
    decode_per_sequence: float
    decode_per_context_token: float
    def __init__(self, prefill_base: _Optional[float] = ..., prefill_per_token: _Optional[float] = ..., prefill_per_token_context: _Optional[float] = ..., decode_base: _Optional[float] = ..., decode_per_sequence: _Optional[float] = ..., decode_per_context_token: _Optional[float] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("region", "replicas", "router_ids", "started_at")
    REGION_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    ROUTER_IDS_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    region: str
    replicas: _containers.RepeatedCompositeFieldContainer[ReplicaStatus]
    router_ids: _containers.RepeatedScalarFieldContainer[str]
    started_at: _timestamp_pb2.Timestamp
    def __init__(self, region: _Optional[str] = ..., replicas: _Optional[_Iterable[_Union[ReplicaStatus, _Mapping]]] = ..., router_ids: _Optional[_Iterable[str]] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ReplicaStatus(_message.Message):
    __slots__ = ("replica_id", "model", "address", "epoch", "state", "reason", "ranks", "load", "coefficients", "prefixes", "metrics_address", "active_seconds", "delivered_tokens", "lost_epochs")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    COEFFICIENTS_FIELD_NUMBER: _ClassVar[int]
    PREFIXES_FIELD_NUMBER: _ClassVar[int]
    METRICS_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOST_EPOCHS_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    model: str
    address: str
    epoch: int
    state: ReplicaState
    reason: str
    ranks: _containers.RepeatedCompositeFieldContainer[RankStatus]
    load: _replica_pb2.Load
    coefficients: StepCoefficients
    prefixes: PrefixSummary
    metrics_address: str
    active_seconds: float
    delivered_tokens: int
    lost_epochs: int
    def __init__(self, replica_id: _Optional[str] = ..., model: _Optional[str] = ..., address: _Optional[str] = ..., epoch: _Optional[int] = ..., state: _Optional[_Union[ReplicaState, str]] = ..., reason: _Optional[str] = ..., ranks: _Optional[_Iterable[_Union[RankStatus, _Mapping]]] = ..., load: _Optional[_Union[_replica_pb2.Load, _Mapping]] = ..., coefficients: _Optional[_Union[StepCoefficients, _Mapping]] = ..., prefixes: _Optional[_Union[PrefixSummary, _Mapping]] = ..., metrics_address: _Optional[str] = ..., active_seconds: _Optional[float] = ..., delivered_tokens: _Optional[int] = ..., lost_epochs: _Optional[int] = ...) -> None: ...

class RankStatus(_message.Message):
    __slots__ = ("stage", "tensor_rank", "node", "device", "pid", "start_layer", "end_layer", "query_heads", "kv_heads", "phase", "loaded_bytes", "total_bytes", "step", "phase_seconds", "figures", "slow")
    class PhaseSecondsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    STAGE_FIELD_NUMBER: _ClassVar[int]
    TENSOR_RANK_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    START_LAYER_FIELD_NUMBER: _ClassVar[int]
    END_LAYER_FIELD_NUMBER: _ClassVar[int]
    QUERY_HEADS_FIELD_NUMBER: _ClassVar[int]
    KV_HEADS_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    LOADED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    PHASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    SLOW_FIELD_NUMBER: _ClassVar[int]
    stage: int
    tensor_rank: int
    node: str
    device: str
    pid: int
    start_layer: int
    end_layer: int
    query_heads: int
    kv_heads: int
    phase: str
    loaded_bytes: int
    total_bytes: int
    step: int
    phase_seconds: _containers.ScalarMap[str, float]
    figures: _step_pb2.RankFigures
    slow: bool
    def __init__(self, stage: _Optional[int] = ..., tensor_rank: _Optional[int] = ..., node: _Optional[str] = ..., device: _Optional[str] = ..., pid: _Optional[int] = ..., start_layer: _Optional[int] = ..., end_layer: _Optional[int] = ..., query_heads: _Optional[int] = ..., kv_heads: _Optional[int] = ..., phase: _Optional[str] = ..., loaded_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ..., step: _Optional[int] = ..., phase_seconds: _Optional[_Mapping[str, float]] = ..., figures: _Optional[_Union[_step_pb2.RankFigures, _Mapping]] = ..., slow: _Optional[bool] = ...) -> None: ...

class WatchProgressRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchProgressResponse(_message.Message):
    __slots__ = ("region", "replicas")
    REGION_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    region: str
    replicas: _containers.RepeatedCompositeFieldContainer[ReplicaProgress]
    def __init__(self, region: _Optional[str] = ..., replicas: _Optional[_Iterable[_Union[ReplicaProgress, _Mapping]]] = ...) -> None: ...

class ReplicaProgress(_message.Message):
    __slots__ = ("status", "ranks_ready", "loaded_bytes", "total_bytes", "elapsed_seconds", "remaining_seconds", "phase")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    RANKS_READY_FIELD_NUMBER: _ClassVar[int]
    LOADED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REMAINING_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    status: ReplicaStatus
    ranks_ready: int
    loaded_bytes: int
    total_bytes: int
    elapsed_seconds: float
    remaining_seconds: float
    phase: str
    def __init__(self, status: _Optional[_Union[ReplicaStatus, _Mapping]] = ..., ranks_ready: _Optional[int] = ..., loaded_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ..., elapsed_seconds: _Optional[float] = ..., remaining_seconds: _Optional[float] = ..., phase: _Optional[str] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("replica_id", "node", "router_id", "grace", "restart", "undo")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    GRACE_FIELD_NUMBER: _ClassVar[int]
    RESTART_FIELD_NUMBER: _ClassVar[int]
    UNDO_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    node: str
    router_id: str
    grace: _duration_pb2.Duration
    restart: bool
    undo: bool
    def __init__(self, replica_id: _Optional[str] = ..., node: _Optional[str] = ..., router_id: _Optional[str] = ..., grace: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., restart: _Optional[bool] = ..., undo: _Optional[bool] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ApplyRequest(_message.Message):
    __slots__ = ("configuration", "plan_only", "grace")
    CONFIGURATION_FIELD_NUMBER: _ClassVar[int]
    PLAN_ONLY_FIELD_NUMBER: _ClassVar[int]
    GRACE_FIELD_NUMBER: _ClassVar[int]
    configuration: str
    plan_only: bool
    grace: _duration_pb2.Duration
    def __init__(self, configuration: _Optional[str] = ..., plan_only: _Optional[bool] = ..., grace: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ApplyResponse(_message.Message):
    __slots__ = ("plan", "progress", "finished")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    plan: ApplyPlan
    progress: ApplyProgress
    finished: ApplyFinished
    def __init__(self, plan: _Optional[_Union[ApplyPlan, _Mapping]] = ..., progress: _Optional[_Union[ApplyProgress, _Mapping]] = ..., finished: _Optional[_Union[ApplyFinished, _Mapping]] = ...) -> None: ...

class ApplyPlan(_message.Message):
    __slots__ = ("steps",)
    STEPS_FIELD_NUMBER: _ClassVar[int]
    steps: _containers.RepeatedCompositeFieldContainer[ApplyStep]
    def __init__(self, steps: _Optional[_Iterable[_Union[ApplyStep, _Mapping]]] = ...) -> None: ...

class ApplyStep(_message.Message):
    __slots__ = ("replica_id", "action", "difference", "weight_bytes", "ranks")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    action: ApplyAction
    difference: str
    weight_bytes: int
    ranks: int
    def __init__(self, replica_id: _Optional[str] = ..., action: _Optional[_Union[ApplyAction, str]] = ..., difference: _Optional[str] = ..., weight_bytes: _Optional[int] = ..., ranks: _Optional[int] = ...) -> None: ...

class ApplyProgress(_message.Message):
    __slots__ = ("step", "state")
    STEP_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    step: int
    state: ApplyState
    def __init__(self, step: _Optional[int] = ..., state: _Optional[_Union[ApplyState, str]] = ...) -> None: ...

class ApplyFinished(_message.Message):
    __slots__ = ("applied", "reason")
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    applied: bool
    reason: str
    def __init__(self, applied: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class ShutdownRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ShutdownResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
