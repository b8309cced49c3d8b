"""`argosy login`: a token from an identity provider by the device flow, kept for the other commands.

Source: RFC 8628 (device authorization grant).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from cluster.cli.credentials import save_token
from cluster.config import OidcConfig, load_config
from cluster.identity.web import ProviderError, discover, fetch_json

GRANT = "urn:ietf:params:oauth:grant-type:device_code"
DEFAULT_INTERVAL = 5.0
DEFAULT_LIFETIME = 300.0


@click.command("login")
@click.option(
    "-f", "--file", type=click.Path(path_type=Path), help="The region's YAML file: its first provider is asked."
)
@click.option("--issuer", help="Address of the provider, instead of -f.")
@click.option("--client-id", default="argosy", show_default=True, help="As whom to ask, with --issuer.")
@click.option("--audience", default="argosy", show_default=True, help="For which service, with --issuer.")
@click.option(
    "--scope", "scopes", multiple=True, default=["openid", "argosy"], show_default=True, help="What to ask for."
)
def command(file: Path | None, issuer: str | None, client_id: str, audience: str, scopes: tuple[str, ...]) -> None:
    """Log in with an identity provider, in a browser on any device.

    The token is kept in a file that only you can read, and sent by the other commands until it expires. An API key in
    $ARGOSY_API_KEY goes before it.

    \b
    Examples:
      argosy login --issuer https://id.example.com
      argosy login -f argosy.yaml
    """
    config = _provider(file, issuer, client_id, audience)
    try:
        answer = _device_flow(config, " ".join(scopes))
    except ProviderError as error:
        raise click.ClickException(str(error)) from None
    lifetime = float(answer.get("expires_in", DEFAULT_LIFETIME))
    path = save_token(str(answer["access_token"]), time.time() + lifetime)
    click.echo(f"Logged in for {lifetime / 60:.0f} minutes; the token is in {path}")


def _provider(file: Path | None, issuer: str | None, client_id: str, audience: str) -> OidcConfig:
    if (file is None) == (issuer is None):
        raise click.UsageError("give --issuer or -f")
    if issuer is not None:
        try:
            return OidcConfig(issuer=issuer, audience=audience, client_id=client_id)
        except ValueError:
            raise click.UsageError(f"--issuer {issuer!r} is not an https address") from None
    assert file is not None
    providers = load_config(file).identity.oidc
    if not providers:
        raise click.ClickException(f"{file}: identity.oidc names no provider")
    return providers[0]


def _device_flow(config: OidcConfig, scope: str) -> Mapping[str, Any]:
    """
    Raises:
        ProviderError: it refuses, or the user did not confirm in time.
    """
    found = discover(config.issuer)
    if "device_authorization_endpoint" not in found:
        raise ProviderError(f"{config.issuer}: offers no device flow")
    form = {"client_id": config.client_id, "scope": scope, "audience": config.audience, "resource": config.audience}
    device = fetch_json(found["device_authorization_endpoint"], form)
    click.echo(f"Open {device['verification_uri']} and enter {device['user_code']}")
    if complete := device.get("verification_uri_complete"):
        click.echo(f"or open {complete}")
    interval = float(device.get("interval", DEFAULT_INTERVAL))
    end = time.monotonic() + float(device.get("expires_in", DEFAULT_LIFETIME))
    poll = {"grant_type": GRANT, "device_code": str(device["device_code"]), "client_id": config.client_id}
    while time.monotonic() < end:
        time.sleep(interval)
        try:
            return fetch_json(found["token_endpoint"], poll)
        except ProviderError as error:
            reason = error.answer.get("error")
            if reason == "slow_down":
                interval += 5.0
            elif reason != "authorization_pending":
                raise
    raise ProviderError("nobody confirmed in time; run `argosy login` again")
