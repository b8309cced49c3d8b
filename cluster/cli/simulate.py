"""`argosy simulate`: registers the simulator's command with the others."""

from __future__ import annotations

from cluster.simulate.command import command

__all__ = ["command"]
