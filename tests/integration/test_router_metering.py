"""The ledger behind a real router: every ending settles, quotas hold over routers, one key is one execution."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from cluster.errors import Reason, ServiceError
from tests.support.fake_replica import FakeReplica, hashed_tokens
from tests.support.guarded_world import guarded_world
from tests.support.router_world import request, run_async

pytestmark = pytest.mark.model


def replica(**options: Any) -> FakeReplica:
    return FakeReplica(hashed_tokens(range(1000, 20000)), **{"step_seconds": 0.002, **options})


@run_async
async def test_a_finished_request_is_a_record_of_its_tenant(smollm2_dir: Path, tmp_path: Path) -> None:
    async with guarded_world(smollm2_dir, tmp_path, replica()) as world:
        acme, beta = await world.tenant("acme"), await world.tenant("beta")
        boss = await world.tenant("ops", "admin", "usage")
        reply = await world.generate(request(max_tokens=20, num_choices=2), acme)
        usage = reply.finished.usage
        for who in (acme, boss):
            record = await world.record(reply.started.request_id, who)
            assert (record.tenant, record.ending, record.attempts, record.region) == ("acme", "complete", 1, "local")
            assert (record.prompt_tokens, record.completion_tokens) == (usage.prompt_tokens, 40)
            assert record.subject.startswith("key:")
        with pytest.raises(ServiceError) as caught:
            await world.record(reply.started.request_id, beta)
        assert caught.value.reason is Reason.UNKNOWN_RESOURCE


@run_async
async def test_a_hard_quota_admits_exactly_what_fits_over_two_routers(smollm2_dir: Path, tmp_path: Path) -> None:
    """T32."""
    async with guarded_world(smollm2_dir, tmp_path, replica(), routers=2) as world:
        acme = await world.tenant("acme", limits={"requests_per_minute": 10_000, "tokens_per_month": 10 * 51})
        ask = request(token_ids={"ids": [1]}, max_tokens=50)
        results = await asyncio.gather(
            *(world.generate(ask, acme, router=number % 2) for number in range(200)), return_exceptions=True
        )
        refused = [result for result in results if isinstance(result, ServiceError)]
        assert len(results) - len(refused) == 10
        assert {error.reason for error in refused} == {Reason.QUOTA_EXCEEDED}
        assert all(error.quotas and error.retry_after for error in refused)
        await world.until_settled()
        assert await world.query("SELECT COUNT(*), SUM(completion_tokens) FROM requests") == [(10, 500)]


@run_async
async def test_what_limits_leave_is_told_in_trailers(smollm2_dir: Path, tmp_path: Path) -> None:
    async with guarded_world(smollm2_dir, tmp_path, replica()) as world:
        acme = await world.tenant("acme", limits={"concurrent_streams": 3, "tokens_per_day": 52})
        call = world.call(request(token_ids={"ids": [1]}, max_tokens=9), acme)
        async for _ in call:
            pass
        trailers = dict(await call.trailing_metadata())
        assert trailers["x-ratelimit-limit-tokens-per-day"] == "52"
        assert trailers["x-ratelimit-remaining-tokens-per-day"] == "42"
        assert trailers["x-ratelimit-remaining-concurrent-streams"] == "2"
        call = world.call(request(token_ids={"ids": [1]}, max_tokens=50), acme)
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()
        assert dict(await call.trailing_metadata())["x-ratelimit-remaining-tokens-per-day"] == "42"


@run_async
async def test_one_idempotency_key_is_executed_once(smollm2_dir: Path, tmp_path: Path) -> None:
    """T28, T29."""
    fake = replica()
    async with guarded_world(smollm2_dir, tmp_path, fake, routers=2) as world:
        acme, beta = await world.tenant("acme"), await world.tenant("beta")
        ask = request(max_tokens=5, idempotency_key="order-7")
        results = await asyncio.gather(
            *(world.generate(ask, acme, router=number % 2) for number in range(50)), return_exceptions=True
        )
        [done] = [result for result in results if not isinstance(result, BaseException)]
        refused = [result for result in results if isinstance(result, ServiceError)]
        assert {(error.reason, error.metadata["request_id"]) for error in refused} == {
            (Reason.DUPLICATE, done.started.request_id)
        }
        assert len(fake.submits) == 1
        await world.generate(ask, beta)
        assert len(fake.submits) == 2
        assert await world.query("SELECT COUNT(*) FROM requests") == [(2,)]


@run_async
async def test_an_overlong_idempotency_key_is_a_wrong_field(smollm2_dir: Path, tmp_path: Path) -> None:
    async with guarded_world(smollm2_dir, tmp_path, replica(), mode="anonymous") as world:
        error = await world.refusal(request(idempotency_key="k" * 129))
        assert error.reason is Reason.INVALID_FIELD
        assert error.violations[0].field == "idempotency_key"


@run_async
async def test_random_endings_add_up_and_leave_nothing_reserved(smollm2_dir: Path, tmp_path: Path) -> None:
    """T30 and T33 in small: cancels, deadlines and moving replicas; the replica's own count bounds the ledger's."""
    rng = random.Random(3)
    fakes = [replica(), replica()]
    async with guarded_world(smollm2_dir, tmp_path, *fakes, routers=2) as world:
        limits = {"tokens_per_day": 10**9, "concurrent_streams": 10**6}
        acme = await world.tenant("acme", limits=limits)
        seen: dict[str, int] = {}
        complete: dict[str, int] = {}

        async def client(number: int) -> None:
            call = world.call(request(prompt=f"{number}", max_tokens=rng.randrange(1, 60)), acme, number % 2)
            stop_after = rng.choice([None, None, 0, 3, 20])
            name, tokens = "", 0
            try:
                async for event in call:
                    if event.HasField("started"):
                        name = event.started.request_id
                    elif event.HasField("delta"):
                        tokens += len(event.delta.token_ids)
                    else:
                        complete[name] = event.finished.usage.completion_tokens
                    if name:
                        seen[name] = tokens
                    if stop_after is not None and tokens >= stop_after:
                        call.cancel()
            except (grpc.aio.AioRpcError, asyncio.CancelledError):
                pass

        async def chaos() -> None:
            for epoch in range(2, 5):
                await asyncio.sleep(0.25)
                victim = fakes[epoch % 2]
                await victim.kill()
                victim.epoch = epoch
                await victim.start()

        await asyncio.gather(chaos(), *(client(number) for number in range(300)))
        await world.until_settled()
        ledger = {
            row[0]: row for row in await world.query("SELECT request_id, ending, completion_tokens FROM requests")
        }
        assert set(seen) <= set(ledger)
        assert len(ledger) <= 300
        for name, tokens in complete.items():
            assert ledger[name][1:] == ("complete", tokens)
            assert seen[name] == tokens
        assert all(ledger[name][2] >= tokens for name, tokens in seen.items()), "nothing unpaid reached a client"
        used = dict(await world.query("SELECT kind, SUM(used) FROM windows GROUP BY kind"))
        [(total,)] = await world.query("SELECT SUM(prompt_tokens + completion_tokens) FROM requests")
        assert used == {"tokens_per_day": total, "concurrent_streams": 0}
        assert len(complete) > 50
        [(moved,)] = await world.query("SELECT COUNT(*) FROM requests WHERE attempts > 1")
        assert moved > 0


@run_async
async def test_a_deadline_is_an_ending_of_its_own(smollm2_dir: Path, tmp_path: Path) -> None:
    sections = {"router": {"listen": "127.0.0.1:0", "default_deadline_seconds": 0.5, "drain_seconds": 5}}
    async with guarded_world(smollm2_dir, tmp_path, replica(step_seconds=0.05), mode="anonymous", **sections) as world:
        from argosy.v1 import inference_pb2_grpc

        stub = inference_pb2_grpc.InferenceServiceStub(world.channels[0])
        with pytest.raises(grpc.aio.AioRpcError):
            async for _ in stub.Generate(request(max_tokens=4000)):
                pass
        await world.until_settled()
        [(ending, tokens)] = await world.query("SELECT ending, completion_tokens FROM requests")
        assert ending == "expired"
        assert tokens > 0


@run_async
async def test_a_request_that_reaches_no_replica_costs_nothing(smollm2_dir: Path, tmp_path: Path) -> None:
    async with guarded_world(smollm2_dir, tmp_path, replica(refuses=True), mode="anonymous") as world:
        assert (await world.refusal(request())).reason is Reason.REFUSED
        await world.until_settled()
        columns = "ending, prompt_tokens, completion_tokens"
        assert await world.query(f"SELECT {columns} FROM requests") == [("failed", 0, 0)]
