"""Clients of KServe's and vLLM's gRPC protocols, each with its own messages, get what our own clients get."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from smg_grpc_proto import vllm_engine_pb2, vllm_engine_pb2_grpc

from argosy.compat import kserve_pb2, kserve_pb2_grpc
from argosy.v1 import inference_pb2 as api
from tests.support.fake_replica import FakeReplica, hashed_tokens
from tests.support.guarded_world import guarded_world
from tests.support.router_world import MODEL, request, router_world, run_async

pytestmark = pytest.mark.model


def fake(step_seconds: float = 0.002) -> FakeReplica:
    return FakeReplica(hashed_tokens(range(1000, 20000)), step_seconds=step_seconds)


@run_async
async def test_tritons_own_client(smollm2_dir: Path, tmp_path: Path) -> None:
    async with guarded_world(smollm2_dir, tmp_path, fake()) as world:
        credentials = await world.tenant("acme")
        asked = request(max_tokens=5, sampling=api.Sampling(seed=3))
        expected = (await world.generate(asked, credentials)).text()
        key = credentials[0][1].removeprefix("Bearer ")
        client = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.support.triton_client", world.addresses[0], MODEL, key),
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        output, _ = await asyncio.wait_for(client.communicate(), 100)
        told = json.loads(output)
    assert told["ready"] is True
    assert "text_input" in told["inputs"]
    assert (told["whole"], told["id"], told["finish_reason"], told["tokens"]) == (expected, "mine", "length", 5)
    assert "sampling.temperature: 9 is not between 0 and 2" in told["refusal"]
    assert "credentials" in told["stranger"]
    assert "".join(told["pieces"]) == expected
    assert len(told["pieces"]) > 2
    assert "text_input is missing" in told["stream_refusal"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"inputs": []}, "inputs"),
        ({"inputs": [{"name": "image", "datatype": "BYTES"}]}, "inputs[0]"),
        ({"inputs": [{"name": "text_input", "datatype": "BYTES"}]}, "inputs[0]"),
        ({"raw_input_contents": [b"\x09\x00\x00\x00short"]}, "inputs[0]"),
        ({"raw_input_contents": [b"\x01\x00\x00\x00\xff"]}, "inputs[0]"),
        ({"parameters": {"wings": {"bool_param": True}}}, "parameters.wings"),
        ({"parameters": {"max_tokens": {"int64_param": -1}}}, "parameters.max_tokens"),
        ({"parameters": {"seed": {"string_param": "x"}}}, "parameters.seed"),
    ],
)
@run_async
async def test_bad_tensors_are_named(smollm2_dir: Path, change: dict[str, Any], field: str) -> None:
    replica = fake()
    async with router_world(smollm2_dir, replica) as world:
        stub: Any = kserve_pb2_grpc.GRPCInferenceServiceStub(world.channel)  # type: ignore[no-untyped-call]
        text: Any = {"name": "text_input", "datatype": "BYTES", "contents": {"bytes_contents": [b"Hello"]}}
        asked = kserve_pb2.ModelInferRequest(**{"model_name": MODEL, "inputs": [text], **change})
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(asked, timeout=30)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert f"{field}: " in str(caught.value.details())
        assert not replica.submits


@run_async
async def test_vllms_messages(smollm2_dir: Path) -> None:
    replica = fake()
    async with router_world(smollm2_dir, replica) as world:
        await world.until_ready(1)
        stub = vllm_engine_pb2_grpc.VllmEngineStub(world.channel)
        expected = await world.generate(request(max_tokens=6, num_choices=2, sampling=api.Sampling(seed=3)))
        params: Any = {"max_tokens": 6, "n": 2, "seed": 3}
        asked = vllm_engine_pb2.GenerateRequest(request_id="r", text="Hello", sampling_params=params, stream=True)
        chunks: dict[int, list[int]] = {0: [], 1: []}
        completes = []
        async for response in stub.Generate(asked, timeout=30):
            if response.HasField("chunk"):
                chunks[response.chunk.index].extend(response.chunk.token_ids)
                assert response.chunk.prompt_tokens == expected.started.prompt_tokens
            else:
                completes.append(response.complete)
        for index in range(2):
            assert chunks[index] == list(completes[index].output_ids) == expected.token_ids(index)
            assert (completes[index].index, completes[index].finish_reason) == (index, "length")
        asked.stream = False
        only = [response async for response in stub.Generate(asked, timeout=30)]
        assert [response.complete.output_ids for response in only] == [c.output_ids for c in completes]
        assert (await stub.HealthCheck(vllm_engine_pb2.HealthCheckRequest(), timeout=10)).healthy
        info = await stub.GetModelInfo(vllm_engine_pb2.GetModelInfoRequest(), timeout=10)
        assert (info.served_model_name, info.is_generation, list(info.eos_token_ids)) == (MODEL, True, [2])
        choice = {"choice": {"choices": ["a.b", "c"]}, "max_tokens": 3}
        asked = vllm_engine_pb2.GenerateRequest(text="Hello", sampling_params=choice)
        assert [response async for response in stub.Generate(asked, timeout=30)]
        assert replica.submits[-1].grammar.regex == r"a\.b|c"


@run_async
async def test_a_request_of_vllms_protocol_can_be_aborted(smollm2_dir: Path) -> None:
    replica = fake(step_seconds=0.02)
    async with router_world(smollm2_dir, replica) as world:
        await world.until_ready(1)
        stub = vllm_engine_pb2_grpc.VllmEngineStub(world.channel)
        params: Any = {"max_tokens": 3000}
        asked = vllm_engine_pb2.GenerateRequest(request_id="r", text="Hello", sampling_params=params, stream=True)
        call = stub.Generate(asked, timeout=60)
        await call.read()
        await stub.Abort(vllm_engine_pb2.AbortRequest(request_ids=["r", "unknown"]), timeout=10)
        with suppress(grpc.aio.AioRpcError):
            async with asyncio.timeout(20):
                while await call.read() is not grpc.aio.EOF:
                    pass
        assert await call.code() is grpc.StatusCode.CANCELLED
        async with asyncio.timeout(20):
            while replica.num_streams or world.ledger.open_rows:
                await asyncio.sleep(0.02)


@run_async
async def test_what_vllms_protocol_asks_in_vain_is_named(smollm2_dir: Path) -> None:
    async with router_world(smollm2_dir, fake()) as world:
        stub = vllm_engine_pb2_grpc.VllmEngineStub(world.channel)
        for params, field in (
            ({"prompt_logprobs": 1}, "sampling_params.prompt_logprobs"),
            ({"structural_tag": "x"}, "sampling_params.structural_tag"),
            ({"logit_bias": {-1: 1.0}}, "sampling_params.logit_bias[-1]"),
            ({"temperature": 9}, "sampling.temperature"),
        ):
            asked = vllm_engine_pb2.GenerateRequest(text="Hello", sampling_params=params)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                [response async for response in stub.Generate(asked, timeout=30)]
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert field in str(caught.value.details())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetModelInfo(
                vllm_engine_pb2.GetModelInfoRequest(), metadata=(("x-argosy-model", "none"),), timeout=10
            )
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
