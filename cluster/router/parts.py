"""Makes the parts of a router out of its configuration. Knows every part and how they hang together; runs nothing."""

from __future__ import annotations

import functools
import importlib.util
import random
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import grpc.aio
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from argosy.compat import kserve_pb2, kserve_pb2_grpc
from argosy.v1 import admin_pb2, admin_pb2_grpc, inference_pb2_grpc, models_pb2_grpc, usage_pb2, usage_pb2_grpc
from cluster import rpc
from cluster.clock import Clock
from cluster.config import ArgosyConfig
from cluster.identity.administration import Administration
from cluster.identity.authenticator import Authenticator
from cluster.identity.interceptor import IdentityInterceptor
from cluster.identity.keys import SECRET_FILE, read_secret
from cluster.identity.oidc import OidcVerifier
from cluster.ids import ModelName, RouterId
from cluster.ledger.ledger import StoredLedger
from cluster.peers import Identity
from cluster.router.admin import AdminService, UsageService
from cluster.router.catalogue import Catalogue
from cluster.router.compat.kserve import KserveService
from cluster.router.dial import dial_grpc
from cluster.router.fleet import Fleet, ModelTraffic
from cluster.router.gauges import keep_gauges
from cluster.router.health import INFERENCE, MODELS, keep_health
from cluster.router.metering import Ledger
from cluster.router.models import ModelService
from cluster.router.quota import SlicedLedger
from cluster.router.regions import Region, eligible_regions
from cluster.router.resume import Tickets, resume_key
from cluster.router.service import InferenceService
from cluster.telemetry import RouterMetrics
from cluster.telemetry.tracing import Tracer, open_tracer

ADMIN = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name
USAGE = usage_pb2.DESCRIPTOR.services_by_name["UsageService"].full_name


@dataclass(frozen=True, slots=True)
class Parts:
    """What a router consists of."""

    config: ArgosyConfig
    clock: Clock
    router_id: RouterId
    identity: Identity
    metrics: RouterMetrics
    books: StoredLedger | None
    """The ledger, if it is one that keeps tenants and keys."""
    sliced: SlicedLedger | None
    """The same, with the limits of tenants whose home is elsewhere."""
    catalogue: Catalogue
    traffic: dict[ModelName, ModelTraffic]
    """What the fleet knows of each model."""
    fleet: Fleet
    tracer: Tracer
    service: InferenceService
    tokens: OidcVerifier
    authenticator: Authenticator
    health: health.aio.HealthServicer
    server: grpc.aio.Server


def assemble(
    config: ArgosyConfig,
    ledger: Ledger,
    clock: Clock,
    router_id: RouterId,
    identity: Identity,
    metrics: RouterMetrics,
    regions: Sequence[Region],
    rng: random.Random,
) -> Parts:
    """Make every part; needs a running event loop.

    Raises:
        ConfigurationError: a model's directory cannot be used.
    """
    anonymous = config.serves_anonymous
    catalogue = Catalogue.load(config)
    eligible = eligible_regions(config)
    traffic = {
        model.name: ModelTraffic(model.block_size, model.batch_tokens, eligible[model.name])
        for model in catalogue.values()
    }
    fleet = Fleet(router_id, clock, rng, traffic, functools.partial(dial_grpc, identity=identity), regions)
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
    server = _server(config, service, catalogue, fleet, servicer, authenticator)
    if books is not None:
        _add_management(server, books, Administration(books, secret, clock), authenticator)
    return Parts(
        config,
        clock,
        router_id,
        identity,
        metrics,
        books,
        sliced,
        catalogue,
        traffic,
        fleet,
        tracer,
        service,
        tokens,
        authenticator,
        servicer,
        server,
    )


def upkeep(parts: Parts) -> list[Coroutine[Any, Any, None]]:
    """What a router does all the time beside serving; each runs for ever."""
    running = [
        parts.tokens.keep_fresh(),
        keep_gauges(parts.metrics, parts.catalogue, parts.fleet, parts.service, parts.books, parts.clock),
        keep_health(parts.health, parts.catalogue, parts.fleet, parts.clock),
    ]
    return [*running, parts.sliced.run()] if parts.sliced is not None else running


def _server(
    config: ArgosyConfig,
    service: InferenceService,
    catalogue: Catalogue,
    fleet: Fleet,
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
    models_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(catalogue, fleet), server)  # type: ignore[no-untyped-call]
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    others = _add_other_protocols(server, service, catalogue, fleet)
    if config.router.reflection:
        names = (INFERENCE, MODELS, ADMIN, USAGE, *others, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
    return server


def _add_other_protocols(
    server: grpc.aio.Server, service: InferenceService, catalogue: Catalogue, fleet: Fleet
) -> list[str]:
    """Services that clients of other systems know; returns their names. vLLM's needs the extra `vllm`."""
    kserve_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(  # type: ignore[no-untyped-call]
        KserveService(service, catalogue, fleet), server
    )
    names = [kserve_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name]
    if importlib.util.find_spec("smg_grpc_proto") is None:
        return names
    from smg_grpc_proto import vllm_engine_pb2_grpc

    from cluster.router.compat import vllm

    vllm_engine_pb2_grpc.add_VllmEngineServicer_to_server(vllm.VllmService(service, catalogue, fleet), server)
    return [*names, vllm.SERVICE]


def _add_management(
    server: grpc.aio.Server, ledger: StoredLedger, administration: Administration, authenticator: Authenticator
) -> None:
    """The services that need a database."""
    admin, usage = AdminService(administration, authenticator), UsageService(ledger)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)  # type: ignore[no-untyped-call]
    usage_pb2_grpc.add_UsageServiceServicer_to_server(usage, server)  # type: ignore[no-untyped-call]
