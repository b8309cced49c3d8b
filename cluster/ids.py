"""Names of things that cross process boundaries, each its own type so that they cannot be mixed up."""

from __future__ import annotations

import secrets
from typing import NewType

RegionId = NewType("RegionId", str)
ReplicaId = NewType("ReplicaId", str)
RouterId = NewType("RouterId", str)
RequestId = NewType("RequestId", str)
ModelName = NewType("ModelName", str)
TenantId = NewType("TenantId", str)

StreamId = NewType("StreamId", int)
"""A request's number on one router-to-replica stream."""

Epoch = NewType("Epoch", int)
"""Counts how often a replica's ranks were (re)built; whatever carries an older one is dropped."""

StepNumber = NewType("StepNumber", int)
"""Counts an epoch's forward passes from 1."""


def new_request_id() -> RequestId:
    """128 random bits: unguessable, so knowing an id proves having been given it."""
    return RequestId(f"req_{secrets.token_hex(16)}")


def new_router_id() -> RouterId:
    return RouterId(f"router_{secrets.token_hex(6)}")
