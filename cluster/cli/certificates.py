"""`argosy certificates`: an authority of one's own, and a certificate for each role of our processes. Knows files."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cluster.errors import ConfigurationError
from cluster.peers import Role

AUTHORITY_DAYS = 3650
_CLOCK_SKEW = datetime.timedelta(minutes=5)

PrivateKey = ec.EllipticCurvePrivateKey


@click.command("certificates")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--days", type=click.IntRange(1, 3650), default=90, show_default=True, help="How long they are valid.")
def command(directory: Path, days: int) -> None:
    """Make certificates for mutual TLS between Argosy's own processes.

    The first run makes an authority; later runs renew the certificates under it, and running processes take them up by
    themselves. All regions that work together need one authority. Keep authority.key off the machines that serve.

    \b
    Example:
      argosy certificates /etc/argosy/peers
    """
    make_authority(directory)
    for role in Role:
        issue(directory, role, days=days)
    click.echo(f"Certificates of {len(Role)} roles are in {directory}, valid for {days} days. In argosy.yaml:\n")
    click.echo("peers:")
    for name, file in (("certificate", "{role}.crt"), ("key", "{role}.key"), ("authority", "authority.crt")):
        click.echo(f'  {name}: "{directory.resolve() / file}"')


def make_authority(directory: Path, name: str = "Argosy peers") -> None:
    """Write `authority.crt` and `authority.key`, unless they are there."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    if (directory / "authority.key").exists():
        return
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = _builder(subject, subject, key, AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    _write(directory, "authority", key, builder.sign(key, hashes.SHA256()))


def issue(directory: Path, role: Role, *, days: float = 90, name: str | None = None) -> None:
    """Write a fresh `ROLE.crt` and `ROLE.key`, signed by the directory's authority.

    Args:
        name: of the files, instead of the role's.

    Raises:
        ConfigurationError: the directory has no authority.
    """
    try:
        authority = x509.load_pem_x509_certificate((directory / "authority.crt").read_bytes())
        signer = serialization.load_pem_private_key((directory / "authority.key").read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{directory}: no authority there: {error}") from None
    assert isinstance(signer, PrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, role.dns_name)])
    builder = _builder(subject, authority.subject, key, days)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(role.dns_name)]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    _write(directory, name or role.value, key, builder.sign(signer, hashes.SHA256()))


def _builder(subject: x509.Name, issuer: x509.Name, key: PrivateKey, days: float) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - _CLOCK_SKEW)
    return builder.not_valid_after(now + datetime.timedelta(days=days))


def _write(directory: Path, name: str, key: PrivateKey, certificate: x509.Certificate) -> None:
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _replace(directory / f"{name}.key", secret, 0o600)
    _replace(directory / f"{name}.crt", certificate.public_bytes(pem), 0o644)


def _replace(path: Path, content: bytes, mode: int) -> None:
    """Whoever reads the file sees the old one or the new one, whole."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
    fresh.replace(path)
