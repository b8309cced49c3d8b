"""Replicas for tests: an engine in the test's own loop, its workers as real processes, no Ray."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from argosy.internal.v1 import control_pb2
from cluster.config import EngineConfig, PeersConfig
from cluster.ids import Epoch, ModelName, RegionId, ReplicaId
from cluster.launch import CollectivesKind, EngineAddresses, EngineSpec, ReplicaSpec, WorkerSpec
from cluster.replica.actor import EngineActor
from model.parallel.dims import ParallelDims
from model.quantization import Quantization

HOST = "127.0.0.1"
TESTS = Path(__file__).parents[1]

TINY_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 1000,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


def tiny_directory(path: Path) -> Path:
    """A checkpoint directory that has a shape but no weights: enough for an engine and the paged fake."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(TINY_CONFIG))
    return path


def replica_spec(
    directory: Path,
    *,
    tp: int = 1,
    pp: int = 1,
    num_blocks: int = 256,
    context_length: int = 512,
    collectives: CollectivesKind = "shared_memory",
    threads_per_rank: int = 1,
    quantization: Quantization = "none",
    peers: PeersConfig | None = None,
    **engine: object,
) -> ReplicaSpec:
    return ReplicaSpec(
        region=RegionId("test"),
        replica_id=ReplicaId("test/0"),
        epoch=Epoch(3),
        model=ModelName("test"),
        directory=directory,
        dims=ParallelDims(tp=tp, pp=pp),
        device="cpu",
        dtype="float32",
        collectives=collectives,
        context_length=context_length,
        num_blocks=num_blocks,
        threads_per_rank=threads_per_rank,
        engine=EngineConfig.model_validate(engine),
        quantization=quantization,
        secret=secrets.token_bytes(32),
        peers=peers or PeersConfig(),
    )


@dataclass
class Replica:
    """One started engine and its workers."""

    spec: ReplicaSpec
    engine: EngineActor
    addresses: EngineAddresses
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    async def status(self) -> control_pb2.ReplicaStatus:
        return control_pb2.ReplicaStatus.FromString(await self.engine.status())

    async def wait_for(self, state: control_pb2.ReplicaState, within: float = 120.0) -> control_pb2.ReplicaStatus:
        """The status once the replica is in `state`."""
        async with asyncio.timeout(within):
            while (status := await self.status()).state != state:
                failed = control_pb2.REPLICA_STATE_FAILED
                assert status.state != failed, status.reason
                await asyncio.sleep(0.02)
        return status

    async def exit_codes(self, within: float = 30.0) -> list[int]:
        """The workers' exit codes, by world rank, once all have ended."""
        return [await asyncio.to_thread(worker.wait, within) for worker in self.workers]


def start_worker(
    spec: ReplicaSpec, world_rank: int, step_channel: str, *arguments: str, module: str = "support.worker_process"
) -> subprocess.Popen[bytes]:
    """One rank as a process of its own. `--fake SECONDS`: the paged fake whose passes take that long."""
    coordinates = spec.dims.coordinates(world_rank)
    fields = {
        "replica": {
            "region": spec.region,
            "replica_id": spec.replica_id,
            "epoch": spec.epoch,
            "model": spec.model,
            "directory": str(spec.directory),
            "tp": spec.dims.tp,
            "pp": spec.dims.pp,
            "collectives": spec.collectives,
            "context_length": spec.context_length,
            "num_blocks": spec.num_blocks,
            "threads_per_rank": spec.threads_per_rank,
            "quantization": spec.quantization,
            "engine": spec.engine.model_dump(mode="json"),
            "secret": spec.secret.hex(),
            "peers": spec.peers.model_dump(mode="json"),
        },
        "stage": coordinates.stage,
        "tp_rank": coordinates.tp_rank,
        "step_channel": step_channel,
    }
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "WORKER_SPEC": json.dumps(fields)}
    return subprocess.Popen([sys.executable, "-m", module, *arguments], env=environment, cwd=TESTS.parent)


def worker_spec(fields: dict) -> WorkerSpec:
    """The inverse of what `start_worker` writes."""
    replica = fields["replica"]
    spec = replica_spec(
        Path(replica["directory"]),
        tp=replica["tp"],
        pp=replica["pp"],
        num_blocks=replica["num_blocks"],
        context_length=replica["context_length"],
        collectives=replica["collectives"],
        threads_per_rank=replica["threads_per_rank"],
        quantization=replica["quantization"],
        peers=PeersConfig.model_validate(replica["peers"]),
        **replica["engine"],
    )
    changes = {"epoch": Epoch(replica["epoch"]), "secret": bytes.fromhex(replica["secret"])}
    dims = spec.dims.coordinates(fields["stage"] * spec.dims.tp + fields["tp_rank"])
    return WorkerSpec(
        replica=_replace(spec, **changes), coordinates=dims, step_channel=fields["step_channel"], host=HOST
    )


def _replace(spec: ReplicaSpec, **changes: object) -> ReplicaSpec:
    return dataclasses.replace(spec, **changes)  # type: ignore[arg-type]


@asynccontextmanager
async def running_replica(
    spec: ReplicaSpec,
    *worker_arguments: str,
    module: str = "support.worker_process",
    ready: bool = True,
    workers: bool = True,
) -> AsyncIterator[Replica]:
    """Start engine and workers; on leaving, stop the engine and make sure that no worker is left."""
    engine = EngineActor(EngineSpec(replica=spec, host=HOST))
    replica = Replica(spec, engine, await engine.start())
    try:
        for world_rank in range(spec.dims.world_size if workers else 0):
            worker = start_worker(spec, world_rank, replica.addresses.step_channel, *worker_arguments, module=module)
            replica.workers.append(worker)
        if ready:
            await replica.wait_for(control_pb2.REPLICA_STATE_READY)
        yield replica
    finally:
        await engine.stop(grace_seconds=0.0)
        for worker in replica.workers:
            worker.kill()
            worker.wait()
