"""Answers as clients see them: text, token ids and chats, choices, stop conditions, usage, models, health."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tokenizers import Tokenizer

from argosy.v1 import inference_pb2 as api
from argosy.v1 import models_pb2
from cluster import rpc
from cluster.errors import ConfigurationError, Reason
from cluster.router.health import INFERENCE, MODELS
from tests.support.fake_replica import FakeReplica, hashed_tokens, scripted_tokens
from tests.support.router_world import MODEL, request, router_world, run_async

pytestmark = pytest.mark.model

END = 2
"""SmolLM2's end token."""
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
def tokenizer(smollm2_dir: Path) -> Tokenizer:
    return Tokenizer.from_file(str(smollm2_dir / "tokenizer.json"))


def saying(tokenizer: Tokenizer, *texts: str) -> FakeReplica:
    """A replica whose choices say these texts, then end."""
    return FakeReplica(scripted_tokens(*([*tokenizer.encode(text).ids, END] for text in texts)), step_seconds=0.002)


@run_async
async def test_every_kind_of_input_reaches_the_replica_as_tokens(smollm2_dir: Path, tokenizer: Tokenizer) -> None:
    replica = saying(tokenizer, "Yes.")
    chat = api.Chat(messages=[api.ChatMessage(role=api.ROLE_USER, content="Hi?")])
    async with router_world(smollm2_dir, replica) as world:
        for message in (request(prompt="Hi?"), request(token_ids={"ids": [5, 6, 7]}), request(chat=chat)):
            reply = await world.generate(message)
            assert reply.text() == "Yes."
            assert reply.started.prompt_tokens == len(replica.submits[-1].prompt_token_ids)
    prompts = [list(spec.prompt_token_ids) for spec in replica.submits]
    assert prompts[0] == tokenizer.encode("Hi?").ids
    assert prompts[1] == [5, 6, 7]
    assert "user\nHi?" in tokenizer.decode(prompts[2])
    assert tokenizer.decode(prompts[2], skip_special_tokens=False).endswith("<|im_start|>assistant\n")


@run_async
async def test_events_come_in_order_and_account_for_everything(smollm2_dir: Path, tokenizer: Tokenizer) -> None:
    text = "Grüße 世界 🎉!"
    async with router_world(smollm2_dir, saying(tokenizer, text)) as world:
        reply = await world.generate(request(prompt="Hello there", sampling={"seed": 12}))
        assert reply.started.request_id.startswith("req_")
        assert (reply.started.model, reply.started.seed) == (MODEL, 12)
        assert [delta.sequence for delta in reply.deltas] == list(range(1, len(reply.deltas) + 1))
        assert all("\ufffd" not in delta.text for delta in reply.deltas)
        assert reply.text() == text
        assert reply.token_ids() == [*tokenizer.encode(text).ids, END]
        finished = reply.finished
        assert finished.last_sequence == len(reply.deltas)
        assert [(o.choice, o.reason, o.stop_string) for o in finished.choices] == [(0, api.FINISH_REASON_STOP, "")]
        assert finished.usage.prompt_tokens == reply.started.prompt_tokens == 2
        assert finished.usage.completion_tokens == len(reply.token_ids())
        assert 0 < finished.timing.time_to_first_token.ToNanoseconds() <= finished.timing.total.ToNanoseconds()
        assert world.ledger.completion_tokens == len(reply.token_ids())
        assert world.ledger.open_rows == {}


@run_async
async def test_defaults_are_filled_in(smollm2_dir: Path, tokenizer: Tokenizer) -> None:
    replica = saying(tokenizer, "x")
    async with router_world(smollm2_dir, replica, model={"context_length": 100}) as world:
        seeds = {(await world.generate(request(token_ids={"ids": [5] * 10}))).started.seed for _ in range(3)}
        await world.generate(request(token_ids={"ids": [5] * 98}, max_tokens=50, stop={"min_tokens": 40}))
        await world.generate(request(stop={"token_ids": [9], "ignore_end_of_text": True}, max_tokens=4))
    assert len(seeds) == 3, "an unset seed is drawn"
    first, clipped, custom = replica.submits[0], replica.submits[3], replica.submits[4]
    assert first.max_tokens == 90, "unset: what is left of the context"
    published = json.loads((smollm2_dir / "generation_config.json").read_text())
    assert first.sampling.temperature == pytest.approx(published.get("temperature", 1.0))
    assert first.sampling.top_p == pytest.approx(published.get("top_p", 1.0))
    assert first.sampling.repetition_penalty == 1.0
    assert list(first.stop_token_ids) == [END]
    assert 50 < first.time_left.ToNanoseconds() / 1e9 < 61, "gRPC rounds a deadline on its way"
    assert (clipped.max_tokens, clipped.min_tokens) == (2, 2)
    assert list(custom.stop_token_ids) == [9]


@run_async
async def test_several_choices_are_separate(smollm2_dir: Path, tokenizer: Tokenizer) -> None:
    texts = ["First 🎉.", "The second one is longer than the others: 世界.", "Third"]
    async with router_world(smollm2_dir, saying(tokenizer, *texts)) as world:
        reply = await world.generate(request(num_choices=3))
        assert [reply.text(choice) for choice in range(3)] == texts
        assert [outcome.choice for outcome in reply.finished.choices] == [0, 1, 2]
        assert reply.finished.usage.prompt_tokens == 1
        assert reply.finished.usage.completion_tokens == sum(len(reply.token_ids(choice)) for choice in range(3))
        assert [delta.sequence for delta in reply.deltas] == list(range(1, len(reply.deltas) + 1))


@run_async
async def test_stop_strings_end_each_choice_by_itself(smollm2_dir: Path, tokenizer: Tokenizer) -> None:
    replica = saying(tokenizer, "one two STOP three", "uno ST dos", "a\n\nUser: b")
    async with router_world(smollm2_dir, replica) as world:
        reply = await world.generate(request(num_choices=3, stop={"strings": ["STOP", "\n\nUser:"]}))
        assert [reply.text(choice) for choice in range(3)] == ["one two ", "uno ST dos", "a"]
        assert [outcome.stop_string for outcome in reply.finished.choices] == ["STOP", "", "\n\nUser:"]
        assert all(outcome.reason == api.FINISH_REASON_STOP for outcome in reply.finished.choices)
        shown = ""
        for delta in reply.deltas:
            if delta.choice == 0:
                shown += delta.text
                assert "one two ".startswith(shown)
        tokens = sum(len(reply.token_ids(choice)) for choice in range(3))
        assert reply.finished.usage.completion_tokens == tokens == world.ledger.completion_tokens


@run_async
async def test_a_stop_string_frees_the_replica(smollm2_dir: Path, tokenizer: Tokenizer) -> None:
    endless = FakeReplica(scripted_tokens(tokenizer.encode(" go on and on STOP").ids), step_seconds=0.002)
    async with router_world(smollm2_dir, endless) as world:
        reply = await world.generate(request(max_tokens=4000, stop={"strings": ["STOP"]}))
        assert reply.text() == " go on and on "
        await world.until(lambda: endless.num_streams == 0)
        assert len(endless.cancels) == 1


@run_async
async def test_length_ends_a_choice_and_shows_what_was_held(smollm2_dir: Path, tokenizer: Tokenizer) -> None:
    emoji = tokenizer.encode("🎉").ids
    assert len(emoji) > 1, "the test wants a character of several tokens"
    replica = FakeReplica(scripted_tokens(emoji), step_seconds=0.002)
    async with router_world(smollm2_dir, replica) as world:
        whole = await world.generate(request(max_tokens=2 * len(emoji)))
        cut = await world.generate(request(max_tokens=2 * len(emoji) - 1))
        held = await world.generate(request(max_tokens=len(emoji), stop={"strings": ["🎉 and"]}))
    assert whole.text() == "🎉🎉"
    assert cut.text() == "🎉\ufffd"
    assert held.text() == "🎉"
    for reply in (whole, cut, held):
        assert reply.finished.choices[0].reason == api.FINISH_REASON_LENGTH


@run_async
async def test_the_model_list_follows_the_replicas(smollm2_dir: Path) -> None:
    replica = FakeReplica(hashed_tokens(range(1000, 2000)))
    async with router_world(smollm2_dir, replica) as world:
        listed = (await world.models.ListModels(models_pb2.ListModelsRequest(), timeout=5)).models
        got = (await world.models.GetModel(models_pb2.GetModelRequest(model=MODEL), timeout=5)).model
        assert list(listed) == [got]
        assert (got.name, got.architecture, got.vocabulary_size) == (MODEL, "LlamaForCausalLM", 49152)
        assert got.has_chat_template
        assert got.ready_replicas == 1
        assert len(got.revision) == 64
        await replica.kill()
        await asyncio.sleep(0.3)
        got = (await world.models.GetModel(models_pb2.GetModelRequest(model=MODEL), timeout=5)).model
        assert got.ready_replicas == 0


@run_async
async def test_health_follows_the_replicas(smollm2_dir: Path) -> None:
    replica = FakeReplica(hashed_tokens(range(1000, 2000)))
    async with router_world(smollm2_dir, replica) as world:
        await world.until_health(f"{INFERENCE}/{MODEL}", SERVING)
        assert await world.health(INFERENCE) == SERVING
        await replica.kill()
        await world.until_health(INFERENCE, NOT_SERVING)
        assert await world.health(f"{INFERENCE}/{MODEL}") == NOT_SERVING
        assert [await world.health(""), await world.health(MODELS)] == [SERVING, SERVING]


@pytest.mark.parametrize("is_on", [True, False])
@run_async
async def test_reflection_is_there_only_if_asked_for(smollm2_dir: Path, is_on: bool) -> None:
    async with router_world(smollm2_dir, router={"reflection": is_on}) as world:
        stub = reflection_pb2_grpc.ServerReflectionStub(world.channel)
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        call = stub.ServerReflectionInfo(iter([ask]), timeout=5)
        if is_on:
            names = {service.name for service in (await call.read()).list_services_response.service}
            assert {INFERENCE, MODELS} <= names
            call.cancel()
        else:
            assert await call.code() is grpc.StatusCode.UNIMPLEMENTED


@run_async
async def test_without_a_replica_the_client_is_told_when_to_retry(smollm2_dir: Path) -> None:
    async with router_world(smollm2_dir) as world:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.generate(request(), timeout_seconds=1.0)
        error = rpc.to_service_error(caught.value)
        assert error.reason is Reason.NO_REPLICA
        assert error.retry_after == 1.0
        assert world.ledger.open_rows == {}


@run_async
async def test_a_port_in_use_ends_the_start(smollm2_dir: Path) -> None:
    async with router_world(smollm2_dir) as world:
        with pytest.raises(ConfigurationError, match=r"router\.listen"):
            async with router_world(smollm2_dir, router={"listen": world.router}):
                pass


@run_async
async def test_a_broken_tokenizer_ends_the_start(smollm2_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((smollm2_dir / "config.json").read_text())
    with pytest.raises(ConfigurationError, match=r"tokenizer\.json"):
        async with router_world(tmp_path) as world:
            await world.serving
    with pytest.raises(ConfigurationError, match="argosy pull"):
        async with router_world(tmp_path / "nothing"):
            pass
