"""The HTTP server: routes, credentials, deadlines, refusals. Knows HTTP; what is asked and answered is its neighbours'.

A request becomes the call that a gRPC client would have made, and goes through the same service: one validator, one
identity, one quota, one ledger. `Call` stands where gRPC's context stands.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from aiohttp import web
from pydantic import ValidationError

from argosy.v1 import inference_pb2 as api
from cluster import rpc
from cluster.config import RouterConfig
from cluster.errors import Reason, ServiceError
from cluster.identity.authenticator import Authenticator
from cluster.identity.principal import Scope, set_caller
from cluster.router.catalogue import Catalogue, ServedModel
from cluster.router.fleet import Fleet
from cluster.router.openai import asking, bodies, problems
from cluster.router.openai.answering import ChatAnswer, CompletionAnswer
from cluster.router.openai.exchange import Call, Events, Exchange, Json
from cluster.router.openai.responses import ResponseAnswer
from cluster.router.service import Context, InferenceService

log = logging.getLogger(__name__)

NO_CREDENTIALS = ("Bearer EMPTY", "Bearer anonymous")
"""What OpenAI's clients, which cannot send no key, send to servers that ask for none."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_Body = TypeVar("_Body", bound=bodies.Labels)


class Door:
    """The routes."""

    def __init__(
        self,
        service: InferenceService,
        catalogue: Catalogue,
        fleet: Fleet,
        authenticator: Authenticator,
        limits: RouterConfig,
    ) -> None:
        self._service = service
        self._catalogue = catalogue
        self._fleet = fleet
        self._authenticator = authenticator
        self._limits = limits

    def application(self) -> web.Application:
        """Every route behind the guard."""
        app = web.Application(client_max_size=self._limits.max_message, middlewares=[self._guard])
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/v1/models", self._list_models),
                web.get("/v1/models/{model:.+}", self._get_model),
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/completions", self._complete),
                web.post("/v1/responses", self._respond),
            ]
        )
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """A caller and a deadline for each request, and a catalogued refusal for whatever goes wrong."""
        try:
            if request.match_info.http_exception is None and request.path != "/health":
                given = [value for value in request.headers.getall("Authorization", ()) if value not in NO_CREDENTIALS]
                caller = await self._authenticator.authenticate([("authorization", value) for value in given])
                caller.check_scope(Scope.GENERATE)
                set_caller(caller)
            return await handler(request)
        except ServiceError as error:
            return _refusal(error)
        except web.HTTPRequestEntityTooLarge:
            return _refusal(ServiceError(Reason.REQUEST_TOO_LARGE, f"at most {self._limits.max_message} bytes"))
        except web.HTTPNotFound:
            return _refusal(ServiceError(Reason.UNKNOWN_RESOURCE, f"{request.method} {request.path[:128]}"))
        except web.HTTPMethodNotAllowed as error:
            return _refusal(ServiceError(Reason.UNSUPPORTED, f"{request.method} here; use {error.headers['Allow']}"))
        except Exception:
            log.exception("%s failed", request.path)
            return _refusal(ServiceError(Reason.INTERNAL))

    async def _health(self, request: web.Request) -> web.Response:
        """Whether any model can be asked; open to everybody."""
        ready = any(self._fleet.num_ready(name) for name in self._catalogue)
        return web.json_response({"status": "ok" if ready else "no replica is ready"}, status=200 if ready else 503)

    async def _list_models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [_model(model) for model in self._catalogue.values()]})

    async def _get_model(self, request: web.Request) -> web.Response:
        return web.json_response(_model(self._catalogue.find(request.match_info["model"])))

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await _read(request, bodies.ChatBody)
        asked = _translated(asking.chat_request, body)
        model = self._catalogue.find(body.model)
        choice = asking.tool_choice(body.tool_choice)
        answer = ChatAnswer(
            (await model.tokenizer()).token_text,
            model.revision,
            include_usage=_wants_usage(body),
            tools=[tool.name for tool in asked.chat.tools],
            must_call=choice not in (None, "none", "auto"),
            with_logprobs=bool(body.logprobs),
        )
        exchange = Exchange(request, body.stream, answer, done=b"data: [DONE]\n\n")
        return await exchange.run(
            [self._run(request, asked, exchange.events(answer.start, answer.delta, answer.finish))]
        )

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await _read(request, bodies.CompletionBody)
        requests = _translated(asking.completion_requests, body)
        model = self._catalogue.find(body.model)
        answer = CompletionAnswer(
            (await model.tokenizer()).token_text,
            model.revision,
            include_usage=_wants_usage(body),
            with_logprobs=body.logprobs is not None,
        )
        exchange = Exchange(request, body.stream, answer, done=b"data: [DONE]\n\n")
        calls = []
        for number, asked in enumerate(requests):
            offset = number * (body.n or 1)
            events = exchange.events(
                answer.start,
                lambda delta, offset=offset: answer.delta(delta, offset),
                lambda finished, offset=offset: answer.finish(finished, offset),
            )
            calls.append(self._run(request, asked, events, number))
        return await exchange.run(calls)

    async def _respond(self, request: web.Request) -> web.StreamResponse:
        body = await _read(request, bodies.ResponsesBody)
        asked = _translated(asking.response_request, body)
        self._catalogue.find(body.model)
        fields = {"instructions", "max_output_tokens", "metadata", "temperature", "top_p", "tools", "text", "user"}
        echo = body.model_dump(by_alias=True, include=fields)
        echo["tools"] = echo["tools"] or []
        echo["tool_choice"] = body.model_dump(include={"tool_choice"})["tool_choice"] or "auto"
        echo["parallel_tool_calls"] = body.parallel_tool_calls is not False
        choice = asking.tool_choice(body.tool_choice)
        must_call = choice not in (None, "none", "auto")
        answer = ResponseAnswer(echo, tools=[tool.name for tool in asked.chat.tools], must_call=must_call)
        exchange = Exchange(request, body.stream, answer, names_events=True)
        return await exchange.run(
            [self._run(request, asked, exchange.events(answer.start, answer.delta, answer.finish))]
        )

    async def _run(self, request: web.Request, asked: api.GenerateRequest, events: Events, number: int = 0) -> None:
        """Make one call of the service."""
        if key := request.headers.get("Idempotency-Key", ""):
            asked.idempotency_key = f"{key}/{number}" if number else key
        seconds = self._limits.default_deadline_seconds
        rpc.set_deadline(seconds)
        try:
            async with asyncio.timeout(seconds):
                events.call = Call(request, events.take)
                await self._service.Generate(asked, cast(Context, events.call))
        except TimeoutError:
            raise ServiceError(Reason.DEADLINE) from None


async def _read(request: web.Request, kind: type[_Body]) -> _Body:
    raw = await request.read()
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise problems.of_validation(error) from None


def _translated(translate: Callable[[Any], Any], body: bodies.Labels) -> Any:
    try:
        return translate(body)
    except (ValueError, RecursionError) as error:
        # Text that is not Unicode, schemas too deep to write: what the messages cannot hold.
        raise asking.invalid("body", f"cannot be used: {error}"[:200]) from None


def _wants_usage(body: bodies.Completing) -> bool:
    return bool(body.stream_options and body.stream_options.include_usage)


def _model(model: ServedModel) -> Json:
    length = model.limits.context_length
    return {"id": model.name, "object": "model", "created": 0, "owned_by": "argosy", "max_model_len": length}


def _refusal(error: ServiceError) -> web.Response:
    return web.json_response(
        problems.error_object(error), status=problems.http_status(error), headers=problems.headers(error)
    )
