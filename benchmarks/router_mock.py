"""One mock replica for all routers: Argosy's internal protocol and OpenAI's HTTP streams, token by token at one rate.

Prints its addresses as one JSON line and serves until killed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging

from aiohttp import web

from tests.support.fake_replica import FakeDirectory, FakeReplica, hashed_tokens

CHUNK = b'data: {"id":"c","object":"text_completion","model":"bench","choices":[{"index":0,"text":" boat"}]}\n\n'


class HttpReplica:
    """Answers /v1/completions as a server of OpenAI's protocol does."""

    def __init__(self, step_seconds: float) -> None:
        self._step_seconds = step_seconds
        self._tick: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Steps for ever, as `FakeReplica` makes them."""
        while True:
            await asyncio.sleep(self._step_seconds)
            tick, self._tick = self._tick, asyncio.get_running_loop().create_future()
            tick.set_result(None)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await self._tick  # prefill
        for _ in range(asked["max_tokens"]):
            await self._tick
            await response.write(CHUNK)
        await response.write(b"data: [DONE]\n\n")
        return response

    async def describe(self, request: web.Request) -> web.Response:
        """Whatever a router asks before it uses a worker."""
        model = {"id": "bench", "object": "model", "owned_by": "bench"}
        return web.json_response({"object": "list", "data": [model], "model_path": "bench", "status": "ok"})


async def serve(step_seconds: float) -> None:
    replica = FakeReplica(hashed_tokens(range(1000, 20000)), model="bench", step_seconds=step_seconds)
    await replica.start()
    directory = FakeDirectory(replica)
    await directory.start()
    http = HttpReplica(step_seconds)
    app = web.Application()
    app.router.add_post("/v1/completions", http.complete)
    app.router.add_route("GET", "/{any:.*}", http.describe)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    addresses = {"directory": directory.address, "replica": replica.address, "http": f"127.0.0.1:{port}"}
    print(json.dumps(addresses), flush=True)
    await http.run()


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # sglang-router tries gRPC on the HTTP port first, and the server tells of it
    parser = argparse.ArgumentParser()
    parser.add_argument("--step-seconds", type=float, default=0.02)
    asyncio.run(serve(parser.parse_args().step_seconds))
