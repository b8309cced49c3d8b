"""The Ray actor around every role. Knows Ray and the list of roles; what a role does is the role's own business.

Ray's part ends here: it places this process, restarts nothing by itself, and carries no tokens.
"""

from __future__ import annotations

import importlib
import os
from typing import Any, Protocol, cast

import ray

from cluster import launch
from cluster.logs import configure_logging

ALLOWED_ENTRY_POINTS = frozenset({launch.ENGINE_ACTOR, launch.WORKER_ACTOR, launch.CONTROLLER_ACTOR})
"""Nothing else is ever imported by name, whoever asks."""


class Role(Protocol):
    """What runs inside the actor."""

    async def start(self) -> object: ...
    async def status(self) -> bytes: ...
    async def stop(self, *arguments: float) -> None: ...


class RoleHost:
    """An actor process that becomes a role when it is told its specification."""

    def __init__(self, entry_point: str) -> None:
        """Raises ValueError if `entry_point` is not one of `ALLOWED_ENTRY_POINTS`."""
        if entry_point not in ALLOWED_ENTRY_POINTS:
            known = ", ".join(sorted(ALLOWED_ENTRY_POINTS))
            raise ValueError(f"entry point {entry_point!r} is not one of {known}")
        module, _, name = entry_point.partition(":")
        self._role_class = getattr(importlib.import_module(module), name)
        self._role: Role | None = None

    async def ping(self) -> int:
        """This process's id: the actor is up."""
        return os.getpid()

    async def start(self, spec: object) -> object:
        """Build the role from its specification and start it; what its `start` returns."""
        if self._role is not None:
            raise RuntimeError("this actor already has its role")
        configure_logging(launch.log_config(spec), **launch.describe(spec))
        self._role = cast(Role, self._role_class(spec))
        return await self._role.start()

    async def status(self) -> bytes:
        """The role's status as a serialized message; empty before `start`."""
        return b"" if self._role is None else await self._role.status()

    async def stop(self, *arguments: float) -> None:
        """End the role, in the role's own way; an engine takes its seconds of grace."""
        if self._role is not None:
            await self._role.stop(*arguments)


RoleActor: Any = ray.remote(RoleHost)
