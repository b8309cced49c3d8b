"""Settled requests as CloudEvents, to a file or over HTTP, each at least once. Knows the outbox; no billing system.

An event's id is the request's, so a receiver that sees one twice knows it. A request leaves the outbox only after the
receiver has taken it: whatever dies in between, it is sent again.

Source: CloudEvents 1.0, JSON event format and its batch for HTTP (application/cloudevents-batch+json).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from cluster.errors import ConfigurationError, ServiceError
from cluster.ledger.database import Database
from cluster.ledger.ledger import StoredLedger

log = logging.getLogger(__name__)

EVENT_TYPE = "dev.argosy.usage.settled.v1"
BATCH = 500
PAUSE_SECONDS = 1.0
"""Between looks into an empty outbox, and after a receiver failed."""
RECEIVER_SECONDS = 10.0

_FIELDS = (
    "tenant",
    "subject",
    "model",
    "region",
    "ending",
    "prompt_tokens",
    "cached_prompt_tokens",
    "completion_tokens",
    "attempts",
    "reasoning_tokens",
    "device_seconds",
)
_SELECT = f"""SELECT requests.request_id, opened_at, settled_at, {", ".join(_FIELDS)} FROM outbox
    JOIN requests ON requests.request_id = outbox.request_id
    WHERE due_at <= ? AND ending IS NOT NULL LIMIT {BATCH}"""  # noqa: S608 (no outside text)

Event = dict[str, Any]
Sink = Callable[[Sequence[Event]], None]
"""Takes events for good, or raises OSError."""


def sink_of(target: str) -> Sink:
    """The receiver that a URL names: `file:///path` or `https://host/path`.

    Raises:
        ConfigurationError: it names none.
    """
    parts = urlsplit(target)
    if parts.scheme == "file" and parts.path and not parts.netloc:
        path = Path(unquote(parts.path))
        return lambda events: _append(path, events)
    if parts.scheme in {"http", "https"} and parts.netloc:
        return lambda events: _post(target, events)
    raise ConfigurationError(f"ledger.export: {target!r} is neither file:///path nor http(s)://host/path")


def _append(path: Path, events: Sequence[Event]) -> None:
    lines = b"".join(json.dumps(event).encode() + b"\n" for event in events)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, lines)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _post(target: str, events: Sequence[Event]) -> None:
    body = json.dumps(events).encode()
    headers = {"Content-Type": "application/cloudevents-batch+json"}
    request = urllib.request.Request(target, body, headers)  # noqa: S310 (the scheme was checked)
    with urllib.request.urlopen(request, timeout=RECEIVER_SECONDS) as response:  # noqa: S310
        response.read()


async def export_always(ledger: StoredLedger, sink: Sink) -> None:
    """Empty the outbox again and again."""
    while True:
        try:
            if await export_batch(ledger, sink):
                continue
        except (OSError, ServiceError) as error:
            log.warning("usage events wait: %s", error)
        await ledger.clock.sleep(PAUSE_SECONDS)


async def export_batch(ledger: StoredLedger, sink: Sink) -> int:
    """Send what waits, at most `BATCH` events; how many.

    Raises:
        OSError: the receiver did not take them; they stay.
        ServiceError: the store is gone.
    """
    rows = await ledger.change(lambda database: database.query(_SELECT, (ledger.clock.wall(),)))
    if rows:
        await asyncio.to_thread(sink, [_event(row) for row in rows])
        await ledger.change(lambda database: _forget(database, [row[0] for row in rows]))
    return len(rows)


def _forget(database: Database, request_ids: Sequence[str]) -> None:
    for request_id in request_ids:
        database.execute("DELETE FROM outbox WHERE request_id = ?", (request_id,))


def _event(row: Sequence[Any]) -> Event:
    request_id, opened_at, settled_at, *values = row
    data = dict(zip(_FIELDS, values, strict=True)) | {"opened_at": _rfc3339(opened_at)}
    return {
        "specversion": "1.0",
        "id": request_id,
        "source": f"/argosy/{data['region']}",
        "type": EVENT_TYPE,
        "subject": data["tenant"],
        "time": _rfc3339(settled_at),
        "datacontenttype": "application/json",
        "data": data,
    }


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
