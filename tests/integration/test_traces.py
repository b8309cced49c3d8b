"""Traces as a collector receives them: a stream that moves between replicas is one trace, with an attempt at each."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.config import TracesConfig
from cluster.telemetry.tracing import NO_SPAN, NoTracer, open_tracer, traceparent_of
from tests.support.fault_world import asks, fault_world
from tests.support.otlp_collector import Collector, running_collector
from tests.support.router_world import Reply, run_async

TRACE, CLIENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
"""A client's own trace and span."""


@run_async
async def test_a_moved_stream_is_one_trace_from_client_to_steps(smollm2_dir: Path, tmp_path: Path) -> None:
    """A rank of the answering replica is killed; the collector learns where the stream was, and why it left."""
    with running_collector() as collector:
        traces = {"endpoint": collector.address, "sample": 0.0, "step_every": 2}
        async with fault_world(smollm2_dir, tmp_path, traces=traces) as faults:
            ask = asks(1, random.Random(1), 150)[0]
            reply = Reply()
            call = faults.world.inference.Generate(
                ask, timeout=60, metadata=(("traceparent", f"00-{TRACE}-{CLIENT}-01"),)
            )
            untraced = faults.ask(asks(1, random.Random(2), 20)[0])
            async for event in call:
                reply.add(event)
                if len(reply.deltas) == 30:
                    site = next(s for s in faults.sites if s.current and s.current.engine._engine._live)
                    os.kill(site.current.workers[0].pid, signal.SIGKILL)
            await untraced
            assert faults.continuations == 1
        # Leaving has closed router and engines, and with them sent what was left.
        async with asyncio.timeout(30):
            while len(collector.named("serve")) < 2:
                await asyncio.sleep(0.05)
    _check_trace(collector, reply, site.replica_id)
    assert ask.token_ids.ids
    assert b"token_ids" not in collector.raw


def _check_trace(collector: Collector, reply: Reply, lost: str) -> None:
    assert {span.trace_id for span in collector.spans} == {TRACE}, "sample 0: only what a caller traces is traced"
    (request,) = collector.named("chat")
    assert (request.parent_id, request.error, request.service) == (CLIENT, "", "argosy-router")
    assert request.attributes["gen_ai.usage.output_tokens"] == reply.finished.usage.completion_tokens == 150
    assert request.attributes["gen_ai.response.id"] == reply.started.request_id
    assert request.attributes["argosy.attempts"] == 2
    first, second = sorted(collector.named("attempt"), key=lambda span: span.name)
    assert {first.parent_id, second.parent_id} == {request.span_id}
    assert (first.attributes["argosy.replica"], second.error) == (lost, "")
    assert "the replica failed" in first.error or "lost" in first.error
    served = {span.parent_id: span for span in collector.named("serve")}
    assert served.keys() == {first.span_id, second.span_id}
    assert served[first.span_id].attributes["argosy.replica"] == lost
    assert served[first.span_id].error == "the replica failed"
    assert served[first.span_id].attributes["argosy.emitted_tokens"] == 0
    assert served[second.span_id].attributes["argosy.emitted_tokens"] >= 29
    assert served[second.span_id].events[-2:] == ("first step", "first token")
    steps = collector.named("step")
    assert {step.parent_id for step in steps} == {span.span_id for span in served.values()}
    assert len(steps) < 100, "every second step at most"


@run_async
async def test_requests_without_a_trace_are_sampled(smollm2_dir: Path, tmp_path: Path) -> None:
    with running_collector() as collector:
        traces = {"endpoint": collector.address, "sample": 1.0}
        async with fault_world(smollm2_dir, tmp_path, count=1, tp=1, traces=traces) as faults:
            for ask in asks(3, random.Random(1), 5):
                faults.ask(ask)
            await faults.assert_exact()
        async with asyncio.timeout(30):
            while len(collector.named("serve")) < 3:
                await asyncio.sleep(0.05)
    assert len({span.trace_id for span in collector.named("chat")}) == 3
    assert all(not span.parent_id for span in collector.named("chat"))


@run_async
async def test_a_collector_that_is_gone_costs_no_answer(smollm2_dir: Path, tmp_path: Path) -> None:
    traces = {"endpoint": "http://127.0.0.1:1", "sample": 1.0}
    async with fault_world(smollm2_dir, tmp_path, count=1, tp=1, traces=traces) as faults:
        for ask in asks(3, random.Random(1), 5):
            faults.ask(ask)
        await faults.assert_exact()


def test_nothing_is_traced_and_nothing_imported_by_default() -> None:
    tracer = open_tracer(TracesConfig(), "router", {})
    assert isinstance(tracer, NoTracer)
    assert tracer.start("x", "server", f"00-{TRACE}-{CLIENT}-01", {}) is NO_SPAN
    code = "import sys, cluster.router.main, cluster.replica.actor; print('opentelemetry' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


@pytest.mark.parametrize("value", ["", "garbage", "00-00000000000000000000000000000000-0000000000000000-01"])
def test_a_broken_trace_context_begins_a_new_trace(value: str) -> None:
    with running_collector() as collector:
        tracer = open_tracer(TracesConfig(endpoint=collector.address, sample=1.0), "router", {})
        tracer.start("x", "server", traceparent_of([("traceparent", value)]), {}).end()
        tracer.close()
    (span,) = collector.spans
    assert not span.parent_id
