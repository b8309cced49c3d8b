"""Numbers that both ends of an internal protocol must agree on. Knows no sockets and no messages."""

from __future__ import annotations

from typing import Final

REPLICA_PROTOCOL_VERSION: Final = 1
"""`Hello.protocol_version` of `ReplicaService`."""

HEARTBEAT_SECONDS: Final = 0.25
"""Longest silence of a healthy peer: engine to router, worker to engine."""

DEAD_AFTER_SECONDS: Final = 3 * HEARTBEAT_SECONDS
"""A peer silent for this long counts as dead, unless a step in flight may take longer."""
