"""Engine and real worker processes over the real step channel and gRPC; only the arithmetic is a checked fake.

Any mix-up of slots, blocks, positions, steps or routers changes a token.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc.aio
import pytest
from support.paged_fake import HANGING_TOKEN, POISON_TOKEN, answer
from support.replicas import Replica, replica_spec, running_replica, tiny_directory
from support.router_stream import RouterStream, router_stream, sampling, spec_of

from argosy.internal.v1 import control_pb2, replica_pb2, step_pb2
from cluster import rpc
from cluster.errors import Reason
from cluster.framing import encode_frame
from cluster.launch import ReplicaSpec


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tiny_directory(tmp_path / "tiny")


def run(
    spec: ReplicaSpec, scenario: Callable[[Replica, RouterStream], Awaitable[None]], pass_seconds: float = 0.0
) -> None:
    async def main() -> None:
        async with running_replica(spec, "--fake", str(pass_seconds)) as replica:
            async with router_stream(replica.addresses.service, expected_epoch=spec.epoch) as router:
                async with asyncio.timeout(60):
                    await scenario(replica, router)

    asyncio.run(main())


async def idle(router: RouterStream) -> None:
    """Until the replica holds nothing more for anybody."""
    seen = len(router.reports)
    while len(router.reports) == seen or (load := router.reports[-1].load).running or load.waiting or load.used_blocks:
        await asyncio.sleep(0.02)


def prompts(count: int, rng: random.Random, low: int = 1, high: int = 120) -> list[list[int]]:
    return [[rng.randrange(600) for _ in range(rng.randint(low, high))] for _ in range(count)]


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 3)])
def test_every_stream_gets_its_own_tokens(directory: Path, tp: int, pp: int) -> None:
    """Many more requests than slots, chunked prefill, several choices, cancels between them."""
    spec = replica_spec(directory, tp=tp, pp=pp, num_blocks=96, max_sequences=6, max_batch_tokens=48)
    rng = random.Random(7)

    async def scenario(replica: Replica, router: RouterStream) -> None:
        async def one(prompt: list[int], seed: int) -> None:
            choices = rng.choice((1, 1, 2))
            length = rng.randint(1, 40)
            stream_id, got = await router.submit(
                spec_of(prompt, length, choices=choices, sampling=sampling(seed=seed, temperature=1.0))
            )
            if seed % 5 == 0:
                await got.has(min(3, length))
                await router.cancel(stream_id)
                return
            await got.over()
            for choice in range(choices):
                assert got.tokens[choice] == answer(prompt, length, seed=seed, choice=choice)
                assert got.ends[choice] == replica_pb2.END_REASON_LENGTH

        await asyncio.gather(*(one(prompt, seed) for seed, prompt in enumerate(prompts(40, rng), start=1)))
        await idle(router)

    run(spec, scenario)


def test_continuation_goes_on_where_another_replica_stopped(directory: Path) -> None:
    async def scenario(replica: Replica, router: RouterStream) -> None:
        prompt = list(range(20))
        whole = answer(prompt, 30, seed=9)
        got = await router.generate(spec_of(prompt, 30, emitted=whole[:12], sampling=sampling(seed=9)))
        assert got.tokens[0] == whole[12:]

    run(replica_spec(directory), scenario)


def test_stop_tokens_end_an_answer_but_not_before_min_tokens(directory: Path) -> None:
    async def scenario(replica: Replica, router: RouterStream) -> None:
        prompt = [5, 6, 7]
        whole = answer(prompt, 20)
        stopped = await router.generate(spec_of(prompt, 20, stop_token_ids=[whole[4]]))
        assert stopped.tokens[0] == whole[:5]
        assert stopped.ends[0] == replica_pb2.END_REASON_STOP
        later = await router.generate(spec_of(prompt, 20, stop_token_ids=[whole[4], whole[9]], min_tokens=6))
        assert later.tokens[0] == whole[:10]

    run(replica_spec(directory), scenario)


def test_log_probabilities_belong_to_their_tokens(directory: Path) -> None:
    async def scenario(replica: Replica, router: RouterStream) -> None:
        asked = spec_of(list(range(30)), 25, choices=2, top_logprobs=0)
        silent = [spec_of([i], 25) for i in range(4)]
        got, *others = await asyncio.gather(router.generate(asked), *map(router.generate, silent))
        for choice in (0, 1):
            assert got.logprobs[choice] == [-float(token) for token in got.tokens[choice]]
        assert not any(other.logprobs[0] for other in others)

    run(replica_spec(directory), scenario)


def test_credit_holds_an_answer_back(directory: Path) -> None:
    async def scenario(replica: Replica, router: RouterStream) -> None:
        stream_id, got = await router.submit(spec_of([1, 2], 20, initial_credit=4))
        await got.has(4)
        await asyncio.sleep(0.3)
        assert len(got.tokens[0]) == 4
        await router.credit(stream_id, 100)
        await got.over()
        assert got.tokens[0] == answer([1, 2], 20)

    run(replica_spec(directory), scenario)


def test_equal_prefixes_are_computed_once(directory: Path) -> None:
    async def scenario(replica: Replica, router: RouterStream) -> None:
        prompt = list(range(100))
        first = await router.generate(spec_of(prompt, 5, cache_domain=b"a"))
        again = await router.generate(spec_of(prompt, 5, cache_domain=b"a"))
        other = await router.generate(spec_of(prompt, 5, cache_domain=b"b"))
        assert (first.cached_prompt_tokens, other.cached_prompt_tokens) == (0, 0)
        assert again.cached_prompt_tokens >= 80
        assert first.tokens == again.tokens == other.tokens == {0: answer(prompt, 5)}

    run(replica_spec(directory), scenario)


def test_deadline_ends_an_answer(directory: Path) -> None:
    async def scenario(replica: Replica, router: RouterStream) -> None:
        got = await router.generate(spec_of([1], 400, seconds=0.3))
        assert got.ends == {0: replica_pb2.END_REASON_DEADLINE}
        assert got.tokens[0] == answer([1], len(got.tokens[0]))

    run(replica_spec(directory), scenario, pass_seconds=0.02)


def test_hostile_specs_are_refused_and_harm_nobody(directory: Path) -> None:
    hostile = [
        replica_pb2.GenerationSpec(),
        spec_of([], 5),
        spec_of([1000], 5),
        spec_of([2**32 - 1], 5),
        spec_of([1] * 512, 5),
        spec_of([1], 2**32 - 1),
        spec_of([1], 0),
        spec_of([1], 5, choices=17),
        spec_of([1], 5, emitted=[1] * 5),
        spec_of([1], 5, initial_credit=0),
        spec_of([1], 5, priority=9),
        spec_of([1], 5, sampling=sampling(temperature=float("nan"))),
        spec_of([1], 5, sampling=sampling(temperature=-1.0)),
        spec_of([1], 5, sampling=sampling(top_p=0.0)),
        spec_of([1], 5, sampling=sampling(repetition_penalty=0.0)),
        spec_of([1], 5, sampling=replica_pb2.SamplingSpec(top_p=1, repetition_penalty=1, logit_bias={1000: 1.0})),
        spec_of([1], 5, stop_token_ids=[1000]),
        spec_of([1], 5, min_tokens=6),
        spec_of([1], 5, top_logprobs=21),
        spec_of([1], 5, grammar=replica_pb2.GrammarSpec(regex="a")),
    ]

    async def scenario(replica: Replica, router: RouterStream) -> None:
        honest = asyncio.create_task(router.generate(spec_of([3, 4], 60)))
        for spec in hostile:
            got = await router.generate(spec)
            assert set(got.ends.values()) == {replica_pb2.END_REASON_REFUSED}, spec
            assert got.details[0]
        assert (await honest).tokens[0] == answer([3, 4], 60)
        assert (await replica.status()).state == control_pb2.REPLICA_STATE_READY

    run(replica_spec(directory), scenario, pass_seconds=0.002)


def test_losing_a_router_ends_its_requests(directory: Path) -> None:
    async def scenario(replica: Replica, router: RouterStream) -> None:
        async with router_stream(replica.addresses.service) as other:
            for _ in range(5):
                await other.submit(spec_of([1, 2, 3], 400))
            _, seen = await other.submit(spec_of([4], 400))
            await seen.has(2)
        await idle(router)
        assert (await router.generate(spec_of([8], 10))).tokens[0] == answer([8], 10)

    run(replica_spec(directory), scenario, pass_seconds=0.01)


def test_a_killed_rank_ends_the_epoch_with_errors_that_name_it(directory: Path) -> None:
    async def scenario(replica: Replica, router: RouterStream) -> None:
        answers = [(await router.submit(spec_of([i], 400)))[1] for i in range(4)]
        await answers[0].has(5)
        replica.workers[1].kill()
        for i, got in enumerate(answers):
            await got.over()
            assert got.ends == {0: replica_pb2.END_REASON_ERROR}
            assert got.tokens.get(0, []) == answer([i], len(got.tokens.get(0, [])))
        status = await replica.status()
        assert status.state == control_pb2.REPLICA_STATE_FAILED
        assert f"stage 0 rank 1 (pid {replica.workers[1].pid}" in status.reason
        assert [rank.phase for rank in status.ranks] == ["ready", "lost"]
        assert await replica.exit_codes() == [3, -9]

    run(replica_spec(directory, tp=2), scenario, pass_seconds=0.01)


def test_a_stopped_rank_is_noticed_although_its_sockets_stay_open(directory: Path) -> None:
    async def scenario(replica: Replica, router: RouterStream) -> None:
        _, got = await router.submit(spec_of([1], 400))
        await got.has(5)
        replica.workers[0].send_signal(19)
        async with asyncio.timeout(10):
            await got.over()
        assert got.ends == {0: replica_pb2.END_REASON_ERROR}
        assert "silent for" in (await replica.status()).reason

    run(replica_spec(directory), scenario, pass_seconds=0.01)


def test_a_rank_that_hangs_is_noticed_although_it_still_sends_heartbeats(directory: Path) -> None:
    async def scenario(replica: Replica, router: RouterStream) -> None:
        await router.generate(spec_of([1] * 40, 20))  # from which the engine learns how long steps take
        got = await router.generate(spec_of([HANGING_TOKEN] * 40, 5))
        assert got.ends == {0: replica_pb2.END_REASON_ERROR}
        assert "no progress for" in (status := await replica.status()).reason
        assert ", at pretend" in status.reason
        assert await replica.exit_codes() == [3]

    run(replica_spec(directory), scenario)


def test_a_rank_that_cannot_load_says_why(directory: Path) -> None:
    async def main() -> None:
        spec = replica_spec(directory)
        async with running_replica(spec, ready=False) as replica:
            while (status := await replica.status()).state != control_pb2.REPLICA_STATE_FAILED:
                await asyncio.sleep(0.05)
            assert "stage 0 rank 0" in status.reason
            assert "WeightsError" in status.reason
            assert await replica.exit_codes() == [1]

    asyncio.run(main())


def test_a_request_that_crashes_its_rank_ends_with_an_error(directory: Path) -> None:
    async def scenario(replica: Replica, router: RouterStream) -> None:
        got = await router.generate(spec_of([POISON_TOKEN], 5))
        assert got.ends == {0: replica_pb2.END_REASON_ERROR}

    run(replica_spec(directory), scenario)


def test_stopping_finishes_what_runs_and_ends_every_process(directory: Path) -> None:
    async def scenario(replica: Replica, router: RouterStream) -> None:
        _, got = await router.submit(spec_of([1], 50))
        await got.has(1)
        await replica.engine.stop(grace_seconds=30)
        await got.over()
        assert got.tokens[0] == answer([1], 50)
        assert await replica.exit_codes() == [0, 0]

    run(replica_spec(directory, tp=2), scenario, pass_seconds=0.002)


def test_a_stale_epoch_and_another_protocol_are_turned_away(directory: Path) -> None:
    async def scenario(replica: Replica, router: RouterStream) -> None:
        for hello, reason in (
            ({"expected_epoch": 2}, Reason.STALE_EPOCH),
            ({"protocol_version": 9}, Reason.PROTOCOL_VERSION),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                async with router_stream(replica.addresses.service, **hello):
                    pass
            assert rpc.to_service_error(refused.value).reason is reason
        assert router.welcome.epoch == 3

    run(replica_spec(directory), scenario)


def test_strangers_on_the_step_channel_learn_and_change_nothing(directory: Path) -> None:
    """Garbage, a pickle, a frame too long, the wrong secret, an older epoch, a second rank 0: all are hung up on."""
    spec = replica_spec(directory)
    hello = {"secret": spec.secret, "epoch": spec.epoch, "stage": 0, "tensor_rank": 0, "pid": 1}
    attempts = [
        b"GET / HTTP/1.1\r\n\r\n",
        pickle.dumps({"a": 1}),
        b"\xff\xff\xff\x7f",
        b"\x00\x00\x00\x00",
        *(
            encode_frame(step_pb2.WorkerMessage(hello=step_pb2.WorkerHello(**{**hello, **wrong})).SerializeToString())
            for wrong in ({"secret": b"x" * 32}, {"epoch": 2}, {"stage": 7}, {})
        ),
    ]

    async def scenario(replica: Replica, router: RouterStream) -> None:
        host, port = replica.addresses.step_channel.split(":")
        for attempt in attempts:
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(attempt)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
        assert (await router.generate(spec_of([3], 10))).tokens[0] == answer([3], 10)

    run(spec, scenario)
