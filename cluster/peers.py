"""Who Argosy's own processes are to each other: roles, what certificates say of them, who may call what.

Knows files and TLS contexts; no gRPC. A process proves its role by a certificate of the one authority that all regions
share: its DNS names hold `ROLE.argosy.internal`. That name is checked in both directions, so that neither a stranger
nor one of our own processes in another role can stand in for the one that was meant.
"""

from __future__ import annotations

import enum
import ipaddress
import logging
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cluster.errors import ConfigurationError

log = logging.getLogger(__name__)

DOMAIN: Final = "argosy.internal"


class Role(enum.Enum):
    """What a process is."""

    ROUTER = "router"
    CONTROLLER = "controller"
    ENGINE = "engine"
    WORKER = "worker"
    OPERATOR = "operator"
    """Whoever runs `argosy up`, `argosy status` and the like."""

    @property
    def dns_name(self) -> str:
        """What a certificate of this role is issued for."""
        return f"{self.value}.{DOMAIN}"


CALLERS: Final[Mapping[str, frozenset[Role]]] = {
    "/argosy.internal.v1.DirectoryService/WatchReplicas": frozenset({Role.ROUTER, Role.CONTROLLER}),
    "/argosy.internal.v1.ControlService/GetStatus": frozenset({Role.OPERATOR, Role.CONTROLLER, Role.ROUTER}),
    "/argosy.internal.v1.ControlService/WatchProgress": frozenset({Role.OPERATOR, Role.CONTROLLER}),
    "/argosy.internal.v1.ControlService/Apply": frozenset({Role.OPERATOR}),
    "/argosy.internal.v1.ControlService/Drain": frozenset({Role.OPERATOR}),
    "/argosy.internal.v1.ControlService/Shutdown": frozenset({Role.OPERATOR}),
    "/argosy.internal.v1.QuotaService/Lease": frozenset({Role.ROUTER}),
    "/argosy.internal.v1.ReplicaService/Connect": frozenset({Role.ROUTER}),
}
"""Which roles may call which private method. What is not listed cannot be called."""


@dataclass(frozen=True, slots=True)
class PeerFiles:
    """PEM files of one process."""

    certificate: Path
    """Its certificate, with the chain up to the authority."""
    key: Path
    authority: Path
    """Whose certificates the other side must show."""


@dataclass(frozen=True, slots=True)
class Identity:
    """One process among our own."""

    role: Role
    files: PeerFiles | None = None
    """None: it speaks plain text, and whoever reaches it is believed."""
    plain_anywhere: bool = False
    """Plain text is accepted beyond the loopback interface."""

    def check_exposure(self, address: str, key: str) -> None:
        """Refuse plain text where others can listen.

        Args:
            address: host:port of a private port.
            key: the configuration key that holds it, for the error.

        Raises:
            ConfigurationError: it can be reached from elsewhere, there are no certificates, and nobody said that this
                is meant.
        """
        if self.files is not None or is_loopback(address):
            return
        if not self.plain_anywhere:
            raise ConfigurationError(
                f"{key}: the private port {address} can be reached by others; set peers.certificate, peers.key and "
                "peers.authority (`argosy certificates DIRECTORY` makes them), or peers.plain: anywhere if the network "
                "is yours alone"
            )
        log.warning("%s: %s is neither encrypted nor asks who calls (peers.plain: anywhere)", key, address)

    def server_context(self) -> ssl.SSLContext | None:
        """For one accepted connection, from the files as they are now; None where plain text is spoken.

        Raises:
            OSError: the files cannot be used.
        """
        return self._context(ssl.PROTOCOL_TLS_SERVER) if self.files else None

    def client_context(self) -> ssl.SSLContext | None:
        """For one connection to a peer; its `server_hostname` is the peer's `Role.dns_name`.

        Raises:
            OSError: the files cannot be used.
        """
        return self._context(ssl.PROTOCOL_TLS_CLIENT) if self.files else None

    def _context(self, protocol: int) -> ssl.SSLContext:
        assert self.files is not None
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(self.files.authority)
        context.load_cert_chain(self.files.certificate, self.files.key)
        context.verify_mode = ssl.CERT_REQUIRED
        return context


def roles_in(names: Iterable[str]) -> frozenset[Role]:
    """The roles that a certificate's DNS names give."""
    known = {role.dns_name: role for role in Role}
    return frozenset(known[name] for name in names if name in known)


def roles_of_certificate(certificate: Mapping[str, object] | None) -> frozenset[Role]:
    """The same, of what `ssl.SSLObject.getpeercert` returns."""
    names = (certificate or {}).get("subjectAltName", ())
    assert isinstance(names, tuple)
    return roles_in(value for kind, value in names if kind == "DNS")


def is_loopback(address: str) -> bool:
    """Whether host:port stays on this machine."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
