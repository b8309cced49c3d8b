"""A request that its client resumed elsewhere: the replica goes on with the later generation and drops the earlier."""

from __future__ import annotations

import asyncio
from pathlib import Path

from argosy.internal.v1 import replica_pb2
from tests.support.paged_fake import answer
from tests.support.replicas import replica_spec, running_replica, tiny_directory
from tests.support.router_stream import router_stream, spec_of
from tests.support.router_world import run_async

PROMPT, LENGTH = [1, 2, 3], 300


@run_async
async def test_the_later_generation_wins(tmp_path: Path) -> None:
    spec = replica_spec(tiny_directory(tmp_path / "tiny"))
    async with running_replica(spec, "--fake", "0.005") as replica, asyncio.timeout(60):
        address = replica.addresses.service
        async with router_stream(address) as first, router_stream(address) as second:
            _, begun = await first.submit(spec_of(PROMPT, LENGTH))
            _, other = await first.submit(spec_of([7, 8], 20, request_id="req_other"))
            await begun.has(10)
            _, resumed = await second.submit(spec_of(PROMPT, LENGTH, emitted=begun.tokens[0][:5], generation=1))
            await begun.over()
            assert begun.ends == {0: replica_pb2.END_REASON_SUPERSEDED}
            assert len(begun.tokens[0]) < LENGTH
            _, zombie = await first.submit(spec_of(PROMPT, LENGTH, emitted=begun.tokens[0]))
            await zombie.over()
            assert zombie.ends == {0: replica_pb2.END_REASON_SUPERSEDED}
            await resumed.over()
            assert begun.tokens[0][:5] + resumed.tokens[0] == answer(PROMPT, LENGTH)
            assert (await other.over()).tokens[0] == answer([7, 8], 20), "others are left alone"
