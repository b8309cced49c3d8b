"""`argosy usage --reconcile` over a real store and a controller's port: agreement, cooked books, leaked windows."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path

from click.testing import CliRunner, Result

from argosy.internal.v1 import control_pb2
from cluster.cli import argosy
from cluster.ids import TenantId
from cluster.ledger.database import SqliteDatabase
from cluster.ledger.records import Ending, Limits, Settlement
from tests.integration.test_peer_tls import controller
from tests.support.ledgers import ledger, reservation
from tests.support.peer_files import peer_files
from tests.support.router_world import run_async

LIMITS = Limits(tokens_per_month=10_000, concurrent_streams=10)


@run_async
async def test_drift_shows_wherever_it_is(tmp_path: Path) -> None:
    peers = peer_files(tmp_path / "peers")
    path = tmp_path / "ledger.db"
    async with controller(peers) as (address, view):
        status = control_pb2.ReplicaStatus(replica_id="m/0", model="m", delivered_tokens=75)
        view.publish([status], [])
        config = {
            "region": "local",
            "models": [{"name": "m"}],
            "controller": {"listen": address},
            "ledger": {"path": str(path)},
            "peers": peers.model_dump(mode="json"),
        }
        file, counted = tmp_path / "argosy.json", tmp_path / "counted.jsonl"
        file.write_text(json.dumps(config))
        async with ledger(lambda: SqliteDatabase(path), tmp_path) as books:
            for name, ending, tokens in (("a", Ending.COMPLETE, 40), ("b", Ending.CANCELLED, 30)):
                ask = reservation(tenant=TenantId("acme"), request_id=name, region="local", limits=LIMITS)
                row = await books.open(ask)
                row.accept(tokens)
                await row.settle(Settlement(ending, 10, 0, tokens))
            await books.open(reservation(tenant=TenantId("acme"), request_id="c", region="local", limits=LIMITS))

            async def reconcile(*clients: tuple[str, int]) -> Result:
                lines = (json.dumps({"request_id": name, "completion_tokens": tokens}) for name, tokens in clients)
                counted.write_text("\n".join(lines))
                command = ["usage", "-f", str(file), "--reconcile", "--clients", str(counted), "--json"]
                return await asyncio.to_thread(CliRunner().invoke, argosy, command)

            def drift(ran: Result) -> dict[str, int]:
                return {line["what"]: line["drift"] for line in json.loads(ran.output) if line["drift"]}

            fine = await reconcile(("a", 40), ("b", 25))
            assert (fine.exit_code, drift(fine)) == (0, {}), fine.output
            assert len(json.loads(fine.output)) == 4, "two windows, one model, the clients"
            wrong = await reconcile(("a", 41), ("b", 31))
            assert (wrong.exit_code, drift(wrong)) == (2, {"a": -1, "b": -1})
            with sqlite3.connect(path) as database:
                database.execute("UPDATE windows SET used = used + 7 WHERE kind = 'tokens_per_month'")
            leaked = await reconcile()
            assert (leaked.exit_code, drift(leaked)) == (2, {"window tokens_per_month of acme": 7})
            with sqlite3.connect(path) as database:
                database.execute("UPDATE windows SET used = used - 7 + 6 WHERE kind = 'tokens_per_month'")
                database.execute("UPDATE requests SET completion_tokens = 46 WHERE request_id = 'a'")
            database.close()
            cooked = await reconcile()
            assert (cooked.exit_code, drift(cooked)) == (2, {"engines of m": 1})
