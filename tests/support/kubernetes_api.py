"""A small Kubernetes API over HTTP: lists, watches from a version on, forgets old versions, checks tokens."""

from __future__ import annotations

import asyncio
import functools
import json
from pathlib import Path
from typing import Any

from aiohttp import web

from cluster.discovery.account import Account

PATHS = {
    "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices": "endpointslices",
    "/api/v1/namespaces/{namespace}/pods": "pods",
    "/api/v1/nodes": "nodes",
}


class KubernetesApi:
    """The objects, every change to them, and what goes wrong on request."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.version = 100
        self.objects: dict[str, dict[str, dict[str, Any]]] = {kind: {} for kind in PATHS.values()}
        self.changes: list[tuple[int, str, dict[str, Any]]] = []
        self.oldest = 0
        """Versions before it are forgotten."""
        self.forbidden: set[str] = set()
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.tokens: list[str] = []
        self._changed = asyncio.Condition()
        self._watches: set[web.StreamResponse] = set()
        (directory / "namespace").write_text("here")
        self.rotate("first")

    async def __aenter__(self) -> KubernetesApi:
        app = web.Application()
        for path, kind in PATHS.items():
            app.router.add_get(path, functools.partial(self._answer, kind))
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.account = Account(f"http://127.0.0.1:{port}", self.directory)
        return self

    async def __aexit__(self, *error: object) -> None:
        self.cut()
        await self._runner.cleanup()

    def rotate(self, token: str) -> None:
        """Only this token counts from now on."""
        self.token = token
        (self.directory / "token").write_text(token + "\n")

    async def put(self, kind: str, item: dict[str, Any]) -> None:
        uid = item["metadata"].setdefault("uid", item["metadata"]["name"])
        event = "MODIFIED" if uid in self.objects[kind] else "ADDED"
        await self._change(kind, event, item)

    async def delete(self, kind: str, uid: str) -> None:
        await self._change(kind, "DELETED", self.objects[kind][uid])

    async def _change(self, kind: str, event: str, item: dict[str, Any]) -> None:
        self.version += 1
        item = {**item, "metadata": {**item["metadata"], "resourceVersion": str(self.version)}}
        if event == "DELETED":
            del self.objects[kind][item["metadata"]["uid"]]
        else:
            self.objects[kind][item["metadata"]["uid"]] = item
        async with self._changed:
            self.changes.append((self.version, kind, {"type": event, "object": item}))
            self._changed.notify_all()

    def cut(self) -> None:
        """Break every watch in the middle of its connection."""
        for watch in self._watches:
            if watch._req is not None and watch._req.transport is not None:
                watch._req.transport.abort()
        self._watches.clear()

    def forget(self) -> None:
        """No watch can go on from a version before this moment."""
        self.version += 1
        self.oldest = self.version

    async def _answer(self, kind: str, request: web.Request) -> web.StreamResponse:
        query = dict(request.query)
        self.requests.append((kind, query))
        self.tokens.append(request.headers.get("Authorization", ""))
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response({"kind": "Status", "code": 401}, status=401)
        if kind in self.forbidden:
            return web.json_response({"kind": "Status", "code": 403}, status=403)
        if "watch" in query:
            return await self._watch(request, kind, int(query["resourceVersion"]))
        items = list(self.objects[kind].values())
        return web.json_response({"metadata": {"resourceVersion": str(self.version)}, "items": items})

    async def _watch(self, request: web.Request, kind: str, version: int) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        if version < self.oldest:
            gone = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}}
            await response.write(json.dumps(gone).encode() + b"\n")
            return response
        self._watches.add(response)
        while True:
            for number, of_kind, event in self.changes:
                if number > version and of_kind == kind:
                    version = number
                    await response.write(json.dumps(event).encode() + b"\n")
            async with self._changed:
                await self._changed.wait()
