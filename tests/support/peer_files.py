"""Certificates of our own processes for tests, as `argosy certificates` makes them. Knows a folder; no processes."""

from __future__ import annotations

from pathlib import Path

from cluster.cli.certificates import issue, make_authority
from cluster.config import PeersConfig
from cluster.peers import Role


def peer_files(folder: Path) -> PeersConfig:
    """A fresh authority in `folder` and certificates of every role, over whatever was there."""
    for old in folder.glob("authority.*"):
        old.unlink()
    make_authority(folder)
    for role in Role:
        issue(folder, role)
    return PeersConfig(certificate=folder / "{role}.crt", key=folder / "{role}.key", authority=folder / "authority.crt")
