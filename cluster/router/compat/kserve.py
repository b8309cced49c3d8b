"""`inference.GRPCInferenceService`: KServe's and Triton's clients ask for text by tensors. Knows both sides' messages.

The tensors are those of Triton's backend for language models: `text_input`, `stream` and `sampling_parameters` in,
`text_output` out.
"""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator, Mapping
from importlib.metadata import version
from typing import Any

from argosy.compat import kserve_pb2 as wire
from argosy.compat import kserve_pb2_grpc
from argosy.v1 import inference_pb2 as api
from cluster.errors import FieldViolation, Reason, ServiceError
from cluster.router.catalogue import Catalogue
from cluster.router.compat.relay import Relay
from cluster.router.fleet import Fleet
from cluster.router.service import Context, InferenceService

INPUTS = {"text_input": "BYTES", "stream": "BOOL", "sampling_parameters": "BYTES"}
OUTPUT = "text_output"
FINISH_REASONS = {api.FINISH_REASON_STOP: "stop", api.FINISH_REASON_LENGTH: "length"}
_INTEGERS = ("max_tokens", "top_k", "seed")
_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
_LENGTH = struct.Struct("<I")


class KserveService(kserve_pb2_grpc.GRPCInferenceServiceServicer):
    """The protocol in front of the service."""

    def __init__(self, service: InferenceService, catalogue: Catalogue, fleet: Fleet) -> None:
        self._service = service
        self._catalogue = catalogue
        self._fleet = fleet

    async def ServerLive(self, request: wire.ServerLiveRequest, context: Context) -> wire.ServerLiveResponse:  # noqa: N802
        return wire.ServerLiveResponse(live=True)

    async def ServerReady(self, request: wire.ServerReadyRequest, context: Context) -> wire.ServerReadyResponse:  # noqa: N802
        return wire.ServerReadyResponse(ready=any(self._fleet.num_ready(name) for name in self._catalogue))

    async def ModelReady(self, request: wire.ModelReadyRequest, context: Context) -> wire.ModelReadyResponse:  # noqa: N802
        model = self._catalogue.find(request.name)
        return wire.ModelReadyResponse(ready=self._fleet.num_ready(model.name) > 0)

    async def ServerMetadata(  # noqa: N802
        self, request: wire.ServerMetadataRequest, context: Context
    ) -> wire.ServerMetadataResponse:
        return wire.ServerMetadataResponse(name="argosy", version=version("argosy"))

    async def ModelMetadata(  # noqa: N802
        self, request: wire.ModelMetadataRequest, context: Context
    ) -> wire.ModelMetadataResponse:
        model = self._catalogue.find(request.name)
        tensor = wire.ModelMetadataResponse.TensorMetadata
        return wire.ModelMetadataResponse(
            name=model.name,
            versions=[model.revision],
            platform=model.architecture,
            inputs=[tensor(name=name, datatype=kind, shape=[1]) for name, kind in INPUTS.items()],
            outputs=[tensor(name=OUTPUT, datatype="BYTES", shape=[-1])],
        )

    async def ModelInfer(self, request: wire.ModelInferRequest, context: Context) -> wire.ModelInferResponse:  # noqa: N802
        pieces = [piece async for piece in self._pieces(request, context)]
        whole = pieces[-1]
        _set_text(whole, "".join(map(_text_of, pieces)), raw=bool(request.raw_input_contents))
        return whole

    async def ModelStreamInfer(  # noqa: N802
        self, requests: AsyncIterator[wire.ModelInferRequest], context: Context
    ) -> AsyncIterator[wire.ModelStreamInferResponse]:
        async for request in requests:
            try:
                streams = _read(request)[1]
                if not streams:
                    yield wire.ModelStreamInferResponse(infer_response=await self.ModelInfer(request, context))
                    continue
                async for piece in self._pieces(request, context):
                    yield wire.ModelStreamInferResponse(infer_response=piece)
            except ServiceError as error:
                failed = wire.ModelInferResponse(model_name=request.model_name, id=request.id)
                yield wire.ModelStreamInferResponse(error_message=error.public_message, infer_response=failed)

    async def _pieces(
        self, request: wire.ModelInferRequest, context: Context
    ) -> AsyncIterator[wire.ModelInferResponse]:
        """One a delta, and a last one that says how it ended."""
        asked, _ = _read(request)
        revision = self._catalogue.find(asked.model).revision
        raw = bool(request.raw_input_contents)
        request_id = ""
        async for event in Relay(self._service, asked, context).events():
            piece = wire.ModelInferResponse(model_name=asked.model, model_version=revision, id=request.id)
            match event.WhichOneof("event"):
                case "started":
                    request_id = event.started.request_id
                    continue
                case "delta":
                    _set_text(piece, event.delta.text, raw=raw)
                case _:
                    _set_text(piece, "", raw=raw)
                    _tell_end(piece, event.finished)
            piece.parameters["request_id"].string_param = request_id
            yield piece


def _tell_end(piece: wire.ModelInferResponse, finished: api.Finished) -> None:
    usage = finished.usage
    piece.parameters["finish_reason"].string_param = FINISH_REASONS[finished.choices[0].reason]
    piece.parameters["triton_final_response"].bool_param = True
    for name in ("prompt_tokens", "completion_tokens", "cached_prompt_tokens"):
        piece.parameters[name].int64_param = getattr(usage, name)


def _set_text(piece: wire.ModelInferResponse, text: str, *, raw: bool) -> None:
    del piece.outputs[:]
    del piece.raw_output_contents[:]
    output = piece.outputs.add(name=OUTPUT, datatype="BYTES", shape=[1])
    data = text.encode()
    if raw:
        piece.raw_output_contents.append(_LENGTH.pack(len(data)) + data)
    else:
        output.contents.bytes_contents.append(data)


def _text_of(piece: wire.ModelInferResponse) -> str:
    if piece.raw_output_contents:
        return piece.raw_output_contents[0][_LENGTH.size :].decode()
    return piece.outputs[0].contents.bytes_contents[0].decode()


def _read(request: wire.ModelInferRequest) -> tuple[api.GenerateRequest, bool]:
    """The request in our words, and whether its answer is wanted in pieces.

    Raises:
        ServiceError: INVALID_FIELD.
    """
    asked = api.GenerateRequest(model=request.model_name)
    streams = False
    for index, tensor in enumerate(request.inputs):
        path = f"inputs[{index}]"
        if INPUTS.get(tensor.name) != tensor.datatype:
            known = ", ".join(f"{name} ({kind})" for name, kind in INPUTS.items())
            raise _invalid(path, f"{tensor.name!r} ({tensor.datatype}) is not an input; known: {known}")
        value = _element(request, index, path)
        if tensor.name == "stream":
            streams = bool(value)
        elif tensor.name == "text_input":
            asked.prompt = _utf8(value, path)
        else:
            _sample(asked, _json_object(_utf8(value, path), path), path)
    _sample(asked, {name: _value(parameter) for name, parameter in request.parameters.items()}, "parameters")
    if not asked.HasField("prompt"):
        raise _invalid("inputs", "text_input is missing")
    return asked, streams


def _element(request: wire.ModelInferRequest, index: int, path: str) -> Any:
    """The one element of an input, from wherever the client put it."""
    tensor = request.inputs[index]
    if request.raw_input_contents:
        if index >= len(request.raw_input_contents):
            raise _invalid(path, "has no entry in raw_input_contents")
        data = request.raw_input_contents[index]
        if tensor.datatype == "BOOL":
            return any(data)
        if len(data) < _LENGTH.size or len(data) != _LENGTH.size + _LENGTH.unpack_from(data)[0]:
            raise _invalid(path, "must be one text with its length, four bytes little-endian, before it")
        return data[_LENGTH.size :]
    elements = tensor.contents.bool_contents if tensor.datatype == "BOOL" else tensor.contents.bytes_contents
    if len(elements) != 1:
        raise _invalid(path, f"has {len(elements)} elements; exactly one is needed")
    return elements[0]


def _sample(asked: api.GenerateRequest, values: Mapping[str, Any], path: str) -> None:
    for name, value in values.items():
        where = f"{path}.{name}"
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if name in _INTEGERS and isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32:
            setattr(asked if name == "max_tokens" else asked.sampling, name, value)
        elif name in _NUMBERS and is_number:
            setattr(asked.sampling, name, value)
        elif name == "stop" and isinstance(value, str | list) and all(isinstance(text, str) for text in value):
            asked.stop.strings.extend([value] if isinstance(value, str) else value)
        elif name not in (*_INTEGERS, *_NUMBERS, "stop"):
            raise _invalid(where, f"is not known; known: {', '.join((*_INTEGERS, *_NUMBERS, 'stop'))}")
        else:
            raise _invalid(where, f"{value!r:.40} is not a value for it")


def _value(parameter: wire.InferParameter) -> Any:
    kind = parameter.WhichOneof("parameter_choice")
    return None if kind is None else getattr(parameter, kind)


def _json_object(text: str, path: str) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        raise _invalid(path, "is not JSON") from None
    if not isinstance(value, dict):
        raise _invalid(path, "is not a JSON object")
    return value


def _utf8(data: bytes, path: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise _invalid(path, "is not UTF-8") from None


def _invalid(field: str, description: str) -> ServiceError:
    return ServiceError(Reason.INVALID_FIELD, violations=(FieldViolation(field, description),))
