"""The actor around a role, without Ray: what may be imported by name, and what is passed on."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import pytest
from support.replicas import replica_spec, tiny_directory

from cluster.launch import ENGINE_ACTOR, WORKER_ACTOR, EngineSpec, WorkerSpec, describe
from cluster.worker.launcher import RoleHost


@pytest.mark.parametrize("name", ["os:system", "cluster.worker.actor:exit_process", "", WORKER_ACTOR + "x"])
def test_nothing_but_roles_is_imported(name: str) -> None:
    with pytest.raises(ValueError, match="is not one of"):
        RoleHost(name)


@pytest.fixture
def root_log_handlers() -> object:
    """A role's process owns its log; the test's process does not."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    for handler in root.handlers:
        if handler not in before[0]:
            handler.close()
    root.handlers, root.level = before[0], before[1]


@pytest.mark.usefixtures("root_log_handlers")
def test_a_host_becomes_its_role_once(tmp_path: Path) -> None:
    spec = EngineSpec(replica_spec(tiny_directory(tmp_path)), "127.0.0.1")

    async def main() -> None:
        host = RoleHost(ENGINE_ACTOR)
        assert await host.ping() == os.getpid()
        assert await host.status() == b""
        addresses = await host.start(spec)
        assert addresses.service.startswith("127.0.0.1:")
        assert b"test/0" in await host.status()
        with pytest.raises(RuntimeError, match="already"):
            await host.start(spec)
        await host.stop()

    asyncio.run(main())


def test_log_lines_say_whose_they_are(tmp_path: Path) -> None:
    replica = replica_spec(tmp_path, tp=2, pp=2)
    worker = WorkerSpec(replica, replica.dims.coordinates(3), "127.0.0.1:1", "127.0.0.1")
    common = {"region": "test", "replica": "test/0", "epoch": 3}
    assert describe(worker) == {"role": "worker", **common, "stage": 1, "rank": 1}
    assert describe(EngineSpec(replica, "127.0.0.1")) == {"role": "engine", **common}
