"""Follows a set of Kubernetes objects for ever: list, then watch, then list again whenever that breaks.

Knows the protocol (kubernetes.io/docs/reference/using-api/api-concepts, "Efficient detection of changes"), no kind's
meaning. While the API is away, the last set stays in force.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from kubernetes.aio.client import ApiException

from cluster.clock import Clock
from cluster.discovery.objects import Object

log = logging.getLogger(__name__)

WATCH_SECONDS = 240
"""A watch is ended by the server after so long, and resumed: a silent one is not trusted for longer."""
SILENCE_SECONDS = 30.0
"""Beyond that, an answer to anything is given up."""
FIRST_RETRY_SECONDS = 0.5
LONGEST_RETRY_SECONDS = 30.0
GONE = 410

List = Callable[..., Awaitable[aiohttp.ClientResponse]]
"""A `list_…_without_preload_content` method of the client library: the answer unread."""
OnObjects = Callable[[Mapping[str, Object]], None]


class _GoneError(Exception):
    """The version that a watch wanted to go on from is no longer kept."""


@dataclass(frozen=True, slots=True)
class Watched:
    """Which objects, and how they are listed."""

    what: str
    """Such as `endpointslices in default`: for logs."""
    list: List
    arguments: Mapping[str, Any]


async def follow(watched: Watched, clock: Clock, on_objects: OnObjects) -> None:
    """Call `on_objects` with all objects by UID, at first and after every change; ends only by cancellation."""
    retry, failing = FIRST_RETRY_SECONDS, ""
    while True:
        try:
            objects, version = await _list(watched)
            if failing:
                log.info("kubernetes: %s: seen again", watched.what)
            retry, failing = FIRST_RETRY_SECONDS, ""
            on_objects(objects)
            while True:
                version = await _watch(watched, objects, version, on_objects)
                # Nothing is missed meanwhile, and a proxy that ends every watch at once is not run after.
                await clock.sleep(FIRST_RETRY_SECONDS)
        except _GoneError:
            log.info("kubernetes: %s: listed anew, the last version seen is no longer kept", watched.what)
        except (ApiException, aiohttp.ClientError, TimeoutError, OSError, json.JSONDecodeError) as error:
            # Once for each kind of trouble, not for each attempt.
            if (why := _explain(error)) != failing:
                log.warning("kubernetes: %s: %s", watched.what, why)
            failing = why
        await clock.sleep(retry)
        retry = min(2 * retry, LONGEST_RETRY_SECONDS)


async def _list(watched: Watched) -> tuple[dict[str, Object], str]:
    async with asyncio.timeout(SILENCE_SECONDS):
        response = await watched.list(**watched.arguments)
        async with response:
            _check(response.status)
            raw = json.loads(await response.read())
    return {item["metadata"]["uid"]: item for item in raw["items"]}, raw["metadata"]["resourceVersion"]


async def _watch(watched: Watched, objects: dict[str, Object], version: str, on_objects: OnObjects) -> str:
    """Take over changes until the server ends the watch; the version to go on from.

    Raises:
        _GoneError: list again.
    """
    response = await watched.list(
        **watched.arguments,
        watch=True,
        resource_version=version,
        allow_watch_bookmarks=True,
        timeout_seconds=WATCH_SECONDS,
        _request_timeout=WATCH_SECONDS + SILENCE_SECONDS,
    )
    async with response:
        _check(response.status)
        async for line in _lines(response):
            event = json.loads(line)
            kind, item = event["type"], event["object"]
            if kind == "ERROR":
                _check(int(item.get("code", 500)))
            version = item["metadata"]["resourceVersion"]
            if kind == "BOOKMARK":
                continue
            uid = item["metadata"]["uid"]
            if kind == "DELETED":
                objects.pop(uid, None)
            else:
                objects[uid] = item
            on_objects(objects)
    return version


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Whole lines, however long: a node lists all its images in one."""
    rest = b""
    async for chunk in response.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line


def _check(status: int) -> None:
    if status == GONE:
        raise _GoneError
    if status >= 300:
        raise ApiException(status=status)


def _explain(error: Exception) -> str:
    if isinstance(error, ApiException) and error.status == 403:
        return "this pod's account may not list and watch them; give it a Role that does (verbs list, watch)"
    if isinstance(error, ApiException) and error.status == 401:
        return "the API does not accept this pod's token"
    if isinstance(error, ApiException):
        return f"the API answered {error.status}"
    return f"the API cannot be reached ({type(error).__name__})"
