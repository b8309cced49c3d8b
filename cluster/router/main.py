"""Builds a router from a configuration and runs it until told to stop. Knows every part; does no part's work."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc.aio

from cluster import rpc
from cluster.clock import Clock, SystemClock
from cluster.config import ArgosyConfig, TlsConfig
from cluster.ids import RouterId, new_router_id
from cluster.ledger.export import export_always, sink_of
from cluster.ledger.opening import open_ledger
from cluster.peers import Role
from cluster.router.catalogue import Catalogue
from cluster.router.console.app import Console
from cluster.router.following import following
from cluster.router.metering import Ledger, MemoryLedger
from cluster.router.openai.door import Door
from cluster.router.openai.listening import opened
from cluster.router.parts import Parts, assemble, upkeep
from cluster.router.quota import giving
from cluster.router.regions import regions_of
from cluster.router.service import InferenceService
from cluster.telemetry import RouterMetrics
from cluster.telemetry.exporter import exported

log = logging.getLogger(__name__)

DRAIN_CHECK_SECONDS = 0.05
SAME_STOP_SECONDS = 2.0
"""Whoever stops a process tree sends SIGTERM to the router, and so does the router's parent: that is one stop."""
FLUSH_SECONDS = 1.0
"""Time for the statuses of cut streams to reach their clients."""


def run(config: ArgosyConfig, on_listening: Callable[[str], None] | None = None) -> None:
    """Run a router in this process until SIGTERM or SIGINT, then drain; a second signal cuts what still runs.

    Args:
        on_listening: called once with the host:port that clients can call.

    Raises:
        ConfigurationError: a model's directory or the port cannot be used.
    """

    async def serve_until_signalled() -> None:
        stop, cut = asyncio.Event(), asyncio.Event()

        loop = asyncio.get_running_loop()
        last_term = -math.inf

        def on_term() -> None:
            nonlocal last_term
            is_echo, last_term = loop.time() - last_term < SAME_STOP_SECONDS, loop.time()
            if not is_echo:
                on_signal()

        def on_signal() -> None:
            (cut if stop.is_set() else stop).set()

        loop.add_signal_handler(signal.SIGTERM, on_term)
        loop.add_signal_handler(signal.SIGINT, on_signal)
        await serve(config, stop=stop, cut=cut, on_listening=on_listening)

    asyncio.run(serve_until_signalled())


async def serve(
    config: ArgosyConfig,
    *,
    stop: asyncio.Event,
    cut: asyncio.Event | None = None,
    on_listening: Callable[[str], None] | None = None,
    clock: Clock | None = None,
    ledger: Ledger | None = None,
    metrics: RouterMetrics | None = None,
    rng: random.Random | None = None,
) -> None:
    """Run a router until `stop` is set, then drain it.

    Args:
        stop: ends it: no new calls, and those that run have `router.drain_seconds` to finish.
        cut: ends the draining at once.
        on_listening: called once with the host:port that clients can call.
        clock, ledger, metrics, rng: what it stands on; the machine's own by default.

    Raises:
        ConfigurationError: a model's directory or the port cannot be used.
    """
    clock, router_id, identity = clock or SystemClock(), new_router_id(), config.peers.identity(Role.ROUTER)
    credentials = _tls(config.router.tls) if config.router.tls else None
    regions = regions_of(config)
    for region in regions:
        for controller in region.controllers:
            identity.check_exposure(controller, "controller.listen" if region.is_home else "regions.controllers")
    async with _opened(ledger, config, clock, router_id) as ledger:
        metrics = metrics or RouterMetrics()
        rng = rng or random.Random()  # noqa: S311 (breaks ties, hides nothing)
        parts = assemble(config, ledger, clock, router_id, identity, metrics, regions, rng)
        tasks: list[asyncio.Task[Any]] = [model.loading for model in parts.catalogue.values()]
        doors = AsyncExitStack()
        try:
            address = rpc.listen(parts.server, config.router.listen, "router.listen", credentials)
            await parts.server.start()
            scraped = doors.enter_context(exported(metrics.registry, config.metrics.router, "metrics.router"))
            tasks.extend(map(asyncio.create_task, upkeep(parts)))
            tasks.extend(map(asyncio.create_task, following(parts, regions, stop, metrics=scraped or "")))
            http = await _open_doors(parts, doors)
            log.info("%s listens on %s, http: %s, metrics: %s", router_id, address, http or "off", scraped or "off")
            if on_listening is not None:
                on_listening(address)
            await _until_stopped(stop, parts.catalogue)
            await parts.health.enter_graceful_shutdown()
            await _drain(parts.service, clock, config.router.drain_seconds, cut or asyncio.Event())
            await parts.server.stop(FLUSH_SECONDS)
        finally:
            for task in tasks:
                task.cancel()
            await doors.aclose()
            parts.catalogue.close()
            await asyncio.gather(*tasks, return_exceptions=True)
            await parts.fleet.close()
            await parts.server.stop(None)
            await asyncio.to_thread(parts.tracer.close)


async def _open_doors(parts: Parts, doors: AsyncExitStack) -> str | None:
    """Open what the configuration offers beside gRPC; returns where HTTP is served, if it is."""
    config = parts.config
    http_listen, tls = config.router.http_listen, config.router.tls
    if parts.books is not None and (quota_listen := config.router.quota_listen) is not None:
        await doors.enter_async_context(giving(parts.books, config.region, quota_listen, parts.identity))
    if http_listen is not None:
        door = Door(parts.service, parts.catalogue, parts.fleet, parts.authenticator, config.router).application()
        http = opened(door, "router.http_listen", http_listen, tls, share_port=config.router.processes > 1)
        http_listen = await doors.enter_async_context(http)
    if (console_listen := config.router.console_listen) is not None:
        console = Console(config, parts.authenticator, parts.clock).application()
        await doors.enter_async_context(opened(console, "router.console_listen", console_listen, tls))
    return http_listen


def _tls(config: TlsConfig) -> grpc.ServerCredentials:
    return rpc.server_credentials(rpc.TlsFiles(config.certificate, config.key, config.client_authority))


@asynccontextmanager
async def _opened(
    ledger: Ledger | None, config: ArgosyConfig, clock: Clock, router_id: RouterId
) -> AsyncIterator[Ledger]:
    """The ledger passed in, or the configured one, closed afterwards."""
    if ledger is not None or config.ledger.store == "memory":
        yield ledger or MemoryLedger()
        return
    sink = sink_of(config.ledger.export) if config.ledger.export else None
    stored = await open_ledger(config, clock, router_id)
    exporting = asyncio.create_task(export_always(stored, sink)) if sink else None
    try:
        yield stored
    finally:
        if exporting is not None:
            exporting.cancel()
            await asyncio.gather(exporting, return_exceptions=True)
        await stored.close()


async def _until_stopped(stop: asyncio.Event, catalogue: Catalogue) -> None:
    """Wait for `stop`, or raise what is wrong with a model's tokenizer."""
    stopped = asyncio.create_task(stop.wait())
    loaded = asyncio.gather(*(model.loading for model in catalogue.values()))
    try:
        waits: list[asyncio.Future[Any]] = [stopped, loaded]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if loaded.done():
            loaded.result()
        await stopped
    finally:
        stopped.cancel()


async def _drain(service: InferenceService, clock: Clock, seconds: float, cut: asyncio.Event) -> None:
    """Take nothing new and let what runs finish; cut it after `seconds`, or as soon as `cut` is set."""
    service.drain()
    log.info("draining %d streams", service.num_streams)
    end = clock.monotonic() + seconds
    while service.num_streams and clock.monotonic() < end and not cut.is_set():
        await clock.sleep(DRAIN_CHECK_SECONDS)
    if service.num_streams:
        log.warning("cutting %d streams", service.num_streams)
        service.cut()
