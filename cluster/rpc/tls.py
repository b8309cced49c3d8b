"""Certificates of servers and clients: read, checked, read again when their files change. Knows files; no services."""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from cluster.errors import ConfigurationError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of one side."""

    certificate: Path
    """Our certificate, with the chain up to its authority."""
    key: Path
    authority: Path | None = None
    """Whose certificates the other side must show. A server without one asks clients for none."""


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """For a port. Files that change are taken up by the next handshake, without a restart.

    Raises:
        ConfigurationError: a file is missing, or certificate and key do not belong together.
    """
    stamp = _stamp(files)
    try:
        initial = _read(files)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"tls: {files.certificate}, {files.key}: {error}") from None

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC before each handshake; None leaves what was."""
        nonlocal stamp
        now = _stamp(files)
        if now == stamp:
            return None
        try:
            fresh = _read(files)
        except (OSError, ssl.SSLError) as error:
            # Half of a pair was replaced: the next handshake looks again.
            log.warning("new certificate not taken: %s", error)
            return None
        stamp = now
        log.info("certificate %s was replaced", files.certificate)
        return fresh

    needs_client = files.authority is not None
    # The type stubs do not know that None is an answer; the documentation does.
    return grpc.dynamic_ssl_server_credentials(initial, fetch, needs_client)  # type: ignore[arg-type]


def channel_credentials(authority: Path | None, files: TlsFiles | None = None) -> grpc.ChannelCredentials:
    """For a channel: servers must be certified by `authority`, or by the system's if that is None; `files` are shown.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    try:
        roots = authority.read_bytes() if authority else None
        key = files.key.read_bytes() if files else None
        chain = files.certificate.read_bytes() if files else None
    except OSError as error:
        raise ConfigurationError(f"tls: {error.filename}: {error.strerror}") from None
    return grpc.ssl_channel_credentials(roots, key, chain)


def _stamp(files: TlsFiles) -> tuple[tuple[int, int], ...]:
    """Changes whenever a file does; missing files count as such."""
    stamps = []
    for path in (files.certificate, files.key, files.authority):
        try:
            status = path.stat() if path else None
            stamps.append((status.st_mtime_ns, status.st_ino) if status else (0, 0))
        except OSError:
            stamps.append((-1, -1))
    return tuple(stamps)


def _read(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    # gRPC would take a pair that does not match and fail every handshake.
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(files.certificate, files.key)
    pair = (files.key.read_bytes(), files.certificate.read_bytes())
    roots = files.authority.read_bytes() if files.authority else None
    return grpc.ssl_server_certificate_configuration([pair], roots)
