"""Builds a router from a configuration and runs it until told to stop. Knows every part; does no part's work."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc.aio
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from argosy.internal.v1 import control_pb2
from argosy.v1 import admin_pb2, admin_pb2_grpc, inference_pb2_grpc, models_pb2_grpc, usage_pb2, usage_pb2_grpc
from cluster import rpc
from cluster.clock import Clock, SystemClock
from cluster.config import ArgosyConfig, KubernetesDiscovery, TlsConfig
from cluster.identity.administration import Administration
from cluster.identity.authenticator import Authenticator
from cluster.identity.interceptor import IdentityInterceptor
from cluster.identity.keys import SECRET_FILE, read_secret
from cluster.identity.oidc import OidcVerifier
from cluster.ids import ModelName, RegionId, RouterId, new_router_id
from cluster.ledger.export import export_always, sink_of
from cluster.ledger.ledger import StoredLedger
from cluster.ledger.opening import open_ledger
from cluster.peers import Role
from cluster.router.admin import AdminService, UsageService
from cluster.router.catalogue import Catalogue
from cluster.router.console.app import Console
from cluster.router.directory import watch_region
from cluster.router.dispatch import dial_grpc
from cluster.router.fleet import Fleet, ModelTraffic
from cluster.router.found import FollowedRegions
from cluster.router.gauges import keep_gauges
from cluster.router.health import INFERENCE, MODELS, keep_health
from cluster.router.metering import Ledger, MemoryLedger
from cluster.router.models import ModelService
from cluster.router.openai.door import Door
from cluster.router.openai.listening import opened
from cluster.router.quota import SlicedLedger, giving
from cluster.router.regions import eligible_regions, regions_of
from cluster.router.resume import Tickets, resume_key
from cluster.router.service import InferenceService
from cluster.telemetry import RouterMetrics
from cluster.telemetry.exporter import exported
from cluster.telemetry.tracing import open_tracer

log = logging.getLogger(__name__)

ADMIN = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name
USAGE = usage_pb2.DESCRIPTOR.services_by_name["UsageService"].full_name
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
    clock = clock or SystemClock()
    router_id = new_router_id()
    anonymous = config.serves_anonymous
    credentials = _tls(config.router.tls) if config.router.tls else None
    identity = config.peers.identity(Role.ROUTER)
    regions = regions_of(config)
    for region in regions:
        for controller in region.controllers:
            identity.check_exposure(controller, "controller.listen" if region.is_home else "regions.controllers")
    async with _opened(ledger, config, clock, router_id) as ledger:
        catalogue = Catalogue.load(config)
        eligible = eligible_regions(config)
        traffic = {
            model.name: ModelTraffic(model.block_size, model.batch_tokens, eligible[model.name])
            for model in catalogue.values()
        }
        dial = functools.partial(dial_grpc, identity=identity)
        rng = rng or random.Random()  # noqa: S311 (breaks ties, hides nothing)
        fleet = Fleet(router_id, clock, rng, traffic, dial, regions)
        metrics = metrics or RouterMetrics()
        books = ledger if isinstance(ledger, StoredLedger) else None
        homes = {section.name: section.quota for section in config.regions}
        sliced = SlicedLedger(books, config.region, homes, identity, clock) if books is not None else None
        tickets = Tickets(resume_key(config, shares_ledger=books is not None))
        tracer = open_tracer(config.traces, "router", {"argosy.region": config.region, "argosy.router": router_id})
        service = InferenceService(
            catalogue, fleet, sliced or ledger, metrics, clock, config.router, tickets, config.region, tracer
        )
        secret = read_secret(config.ledger_path.with_name(SECRET_FILE)) if books else b""
        tokens = OidcVerifier(config.identity.oidc, clock)
        authenticator = Authenticator(books, secret, clock, anonymous=anonymous, tokens=tokens)
        servicer = health.aio.HealthServicer()
        server = _server(config, service, ModelService(catalogue, fleet), servicer, authenticator)
        if books is not None:
            _add_management(server, books, Administration(books, secret, clock), authenticator)
        exports = AsyncExitStack()
        tasks: list[asyncio.Task[Any]] = [model.loading for model in catalogue.values()]
        try:
            address = rpc.listen(server, config.router.listen, "router.listen", credentials)
            await server.start()
            scraped = exports.enter_context(exported(metrics.registry, config.metrics.router, "metrics.router"))
            learn = functools.partial(_learn_models, catalogue, config, traffic)
            on_directory = functools.partial(_on_directory, fleet, config.region, stop, learn)
            check = functools.partial(identity.check_exposure, key="discovery.kubernetes")
            follow = functools.partial(
                watch_region,
                router_id=router_id,
                identity=identity,
                clock=clock,
                on_directory=on_directory,
                metrics=scraped or "",
            )
            followed = FollowedRegions(regions, check, follow)
            tasks.append(asyncio.create_task(followed.run()))
            if config.discovery.kubernetes is not None:
                tasks.append(asyncio.create_task(_discover(config.discovery.kubernetes, clock, followed)))
            tasks.append(asyncio.create_task(tokens.keep_fresh()))
            if books is not None and (quota_listen := config.router.quota_listen) is not None:
                await exports.enter_async_context(giving(books, config.region, quota_listen, identity))
            if sliced is not None:
                tasks.append(asyncio.create_task(sliced.run()))
            tasks.append(asyncio.create_task(keep_gauges(metrics, catalogue, fleet, service, books, clock)))
            tasks.append(asyncio.create_task(keep_health(servicer, catalogue, fleet, clock)))
            if (http_listen := config.router.http_listen) is not None:
                door = Door(service, catalogue, fleet, authenticator, config.router).application()
                shares = config.router.processes > 1
                http = opened(door, http_listen, config.router.tls, share_port=shares)
                http_listen = await exports.enter_async_context(http)
            if (console_listen := config.router.console_listen) is not None:
                console = Console(config, authenticator, clock).application()
                await exports.enter_async_context(opened(console, console_listen, config.router.tls))
            log.info(
                "%s listens on %s, http: %s, metrics: %s", router_id, address, http_listen or "off", scraped or "off"
            )
            if on_listening is not None:
                on_listening(address)
            await _until_stopped(stop, catalogue)
            await servicer.enter_graceful_shutdown()
            await _drain(service, clock, config.router.drain_seconds, cut or asyncio.Event())
            await server.stop(FLUSH_SECONDS)
        finally:
            for task in tasks:
                task.cancel()
            await exports.aclose()
            catalogue.close()
            await asyncio.gather(*tasks, return_exceptions=True)
            await fleet.close()
            await server.stop(None)
            await asyncio.to_thread(tracer.close)


async def _discover(config: KubernetesDiscovery, clock: Clock, followed: FollowedRegions) -> None:
    """Follow the controllers that the Kubernetes API knows. Whoever does not ask for it needs no client library."""
    from cluster.discovery.account import Account
    from cluster.discovery.kubernetes import follow_controllers

    await follow_controllers(Account.of_this_pod(), config.namespaces, clock, followed.found)


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


def _server(
    config: ArgosyConfig,
    service: InferenceService,
    models: ModelService,
    servicer: health.aio.HealthServicer,
    authenticator: Authenticator,
) -> grpc.aio.Server:
    """The public server with every service on it, not yet listening."""
    server = rpc.server(
        link=rpc.Link.PUBLIC,
        default_deadline=config.router.default_deadline_seconds,
        max_receive=config.router.max_message,
        max_connections=config.router.max_connections,
        share_port=config.router.processes > 1,
        interceptors=[IdentityInterceptor(authenticator)],
    )
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    models_pb2_grpc.add_ModelServiceServicer_to_server(models, server)  # type: ignore[no-untyped-call]
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    if config.router.reflection:
        names = (INFERENCE, MODELS, ADMIN, USAGE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
    return server


def _add_management(
    server: grpc.aio.Server, ledger: StoredLedger, administration: Administration, authenticator: Authenticator
) -> None:
    """The services that need a database."""
    admin, usage = AdminService(administration, authenticator), UsageService(ledger)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)  # type: ignore[no-untyped-call]
    usage_pb2_grpc.add_UsageServiceServicer_to_server(usage, server)  # type: ignore[no-untyped-call]


def _learn_models(
    catalogue: Catalogue,
    config: ArgosyConfig,
    traffic: dict[ModelName, ModelTraffic],
    wanted: Iterable[control_pb2.WantedModel],
) -> None:
    """Serve models that were added to the region after this router started. One that cannot be read is left out."""
    for model in wanted:
        if model.name in catalogue or model.name in catalogue.refused:
            continue
        if (added := catalogue.add(model.name, model.section, config)) is not None:
            regions = frozenset(map(RegionId, added.regions))
            served = catalogue[model.name]
            # The fleet looks models up in this very mapping.
            traffic[ModelName(model.name)] = ModelTraffic(served.block_size, served.batch_tokens, regions)


def _on_directory(
    fleet: Fleet,
    region: str,
    stop: asyncio.Event,
    learn: Callable[[Iterable[control_pb2.WantedModel]], None],
    directory: control_pb2.WatchReplicasResponse,
) -> None:
    """Use what a controller offers. That of the own region may also add models, and end this router."""
    if directory.region == region:
        learn(directory.models)
    if directory.drain and directory.region == region and not stop.is_set():
        log.info("the controller sends this router away")
        stop.set()
    fleet.update(directory)


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
