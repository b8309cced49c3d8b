"""The console's HTTP side: who may see it, and one JSON answer. Knows the overview; draws nothing.

Controllers are asked only while somebody looks, and at most once a second however many look.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from typing import Any

from aiohttp import web

from cluster.clock import Clock
from cluster.config import ArgosyConfig
from cluster.errors import ServiceError
from cluster.identity.authenticator import Authenticator
from cluster.identity.principal import Scope
from cluster.overview.figures import RegionView
from cluster.overview.poll import overviews, places_of
from cluster.peers import Role, is_loopback
from cluster.router.openai import problems

FRESH_SECONDS = 1.0
_FILES = {"": "text/html", "console.js": "text/javascript", "console.css": "text/css"}
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'"
"""Nothing from elsewhere, nothing inline: names of models and nodes can never become script."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Console:
    """The routes."""

    def __init__(self, config: ArgosyConfig, authenticator: Authenticator, clock: Clock) -> None:
        self._authenticator = authenticator
        self._clock = clock
        # Where nobody has keys, whoever sits at the machine may look, and nobody else.
        address = config.router.console_listen or ""
        self._is_open = config.serves_anonymous and config.ledger.store == "memory" and is_loopback(address)
        self._locations: Mapping[str, Sequence[float]] = {
            section.name: section.location for section in config.regions if section.location is not None
        }
        if config.location is not None:
            self._locations = {**self._locations, config.region: config.location}
        places = places_of(config)
        self._views: AsyncIterator[list[RegionView]] = overviews(
            places, config.peers.identity(Role.ROUTER), clock, FRESH_SECONDS
        )
        self._lock = asyncio.Lock()
        self._latest: list[RegionView] = []
        self._read_at = -FRESH_SECONDS

    def application(self) -> web.Application:
        """The page and its figures."""
        app = web.Application()
        for name, kind in _FILES.items():
            app.router.add_get(f"/{name}", _file(name or "console.html", kind))
        app.router.add_get("/overview.json", self._overview)
        return app

    async def _overview(self, request: web.Request) -> web.Response:
        try:
            await self._admit(request)
        except ServiceError as error:
            return web.json_response(problems.error_object(error), status=problems.http_status(error))
        async with self._lock:
            if self._clock.monotonic() - self._read_at >= FRESH_SECONDS:
                self._latest = await anext(self._views)
                self._read_at = self._clock.monotonic()
        regions = [_region(view, self._locations.get(view.name)) for view in self._latest]
        return web.json_response({"regions": regions}, headers={"Cache-Control": "no-store"})

    async def _admit(self, request: web.Request) -> None:
        if self._is_open:
            return
        given = [("authorization", value) for value in request.headers.getall("Authorization", ())]
        (await self._authenticator.authenticate(given)).check_scope(Scope.ADMIN)


def _region(view: RegionView, location: Sequence[float] | None) -> dict[str, Any]:
    return {**asdict(view), "location": location}


def _file(name: str, kind: str) -> Handler:
    body = resources.files(__package__).joinpath(name).read_bytes()
    headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}

    async def serve(request: web.Request) -> web.Response:
        return web.Response(body=body, content_type=kind, charset="utf-8", headers=headers)

    return serve
