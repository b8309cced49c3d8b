"""A pod's own account at the Kubernetes API. Knows where the credentials lie; asks nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from kubernetes.aio import client

from cluster.errors import ConfigurationError

DIRECTORY = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""kubernetes.io/docs/tasks/run-application/access-api-from-pod"""


@dataclass(frozen=True, slots=True)
class Account:
    """Where the API is, and what proves who asks."""

    host: str
    """https://HOST:PORT."""
    directory: Path = DIRECTORY
    """Holds `token`, `ca.crt` and `namespace`; Kubernetes replaces them while the pod runs."""

    @classmethod
    def of_this_pod(cls) -> Account:
        """
        Raises:
            ConfigurationError: this process is in no pod, or its pod has no account.
        """
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT")
        if not host or not port:
            raise ConfigurationError("discovery.kubernetes: this process is not in a pod; list `regions` instead")
        if not (DIRECTORY / "token").is_file():
            raise ConfigurationError(
                "discovery.kubernetes: the pod has no service-account token; set automountServiceAccountToken: true"
            )
        return cls(f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}")

    @property
    def namespace(self) -> str:
        """The pod's own."""
        return (self.directory / "namespace").read_text().strip()

    def open(self) -> client.ApiClient:
        """A client that reads the token anew for each request, so that a rotated one is used at once."""
        configuration = client.Configuration()
        configuration.host = self.host
        authority = self.directory / "ca.crt"
        configuration.ssl_ca_cert = str(authority) if authority.is_file() else None

        def use_current_token(target: client.Configuration) -> None:
            target.api_key["BearerToken"] = f"Bearer {(self.directory / 'token').read_text().strip()}"

        use_current_token(configuration)
        configuration.refresh_api_key_hook = use_current_token  # type: ignore[assignment]
        return client.ApiClient(configuration)
