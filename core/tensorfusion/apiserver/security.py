"""Who may talk to the server: certificates, the bearer token, Host and Origin, the kubeconfig.

Everything secret lies in files of mode 0600 and is made once per data folder.
"""

import base64
import hmac
import ipaddress
import os
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tensorfusion.clock import Clock
from tensorfusion.errors import ConfigError

_VALID_DAYS: Final = 3_650
_RENEW_BEFORE_DAYS: Final = 30
_TOKEN_BYTES: Final = 32
_HOSTS: Final = frozenset({"127.0.0.1", "localhost"})
_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[^:]+)(?::[0-9]*)?")
_CONTEXT: Final = "tensorfusion"


@dataclass(frozen=True, slots=True)
class Credentials:
    """The files of one data folder that let server and clients trust each other.

    Attributes:
        authority_pem: Certificate of our own authority.
        certificate_path: Serving certificate.
        key_path: Its private key.
        token: The bearer token.
    """

    authority_pem: bytes
    certificate_path: Path
    key_path: Path
    token: str

    def accepts(self, authorization: bytes) -> bool:
        """Compare an ``Authorization`` header with the token in constant time."""
        scheme, _, given = authorization.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(
            given.strip(), self.token.encode()
        )


def write_private(path: Path, content: bytes) -> None:
    """Write a file of mode 0600 in one step: readers see the old content or the new one.

    Raises:
        ConfigError: The folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(content)
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error


def ensure_credentials(folder: Path, clock: Clock, served: Collection[str] = ()) -> Credentials:
    """Load the credentials of a data folder, or make what is missing or about to expire.

    Args:
        served: Names and addresses that the certificate is for, beside loopback.

    Raises:
        ConfigError: The folder cannot be read or written.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"cannot use {folder}: {error.strerror or error}") from error
    authority, certificate, key = (folder / name for name in ("ca.crt", "tls.crt", "tls.key"))
    now = datetime.fromtimestamp(clock.now(), UTC)
    subjects = {_subject(name) for name in (*_HOSTS, *served)}
    if not (authority.exists() and key.exists() and _usable(certificate, now, subjects)):
        _make_certificates(authority, certificate, key, now, subjects)
    token_path = folder / "token"
    token = token_path.read_text().strip() if token_path.exists() else ""
    if len(token) < _TOKEN_BYTES:
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        write_private(token_path, token.encode() + b"\n")
    for path in (authority, certificate, key, token_path):
        path.chmod(0o600)
    return Credentials(authority.read_bytes(), certificate, key, token)


def _subject(name: str) -> x509.GeneralName:
    """A name or an address, as a certificate has it."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usable(certificate: Path, now: datetime, subjects: Collection[x509.GeneralName]) -> bool:
    if not certificate.exists():
        return False
    try:
        loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
        names = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return False
    if not set(subjects) <= set(names):
        return False
    until = loaded.not_valid_after_utc - timedelta(days=_RENEW_BEFORE_DAYS)
    return loaded.not_valid_before_utc <= now < until


def _make_certificates(
    authority: Path,
    certificate: Path,
    key: Path,
    now: datetime,
    subjects: Collection[x509.GeneralName],
) -> None:
    """Make an authority, sign one serving certificate with it and forget the authority's key."""
    authority_key, serving_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tensorfusion local authority")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tensorfusion")])
    start, end = now - timedelta(hours=1), now + timedelta(days=_VALID_DAYS)
    names = x509.SubjectAlternativeName(sorted(subjects, key=repr))

    def builder(name: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
                critical=False,
            )
        )

    usage = {
        "digital_signature": True,
        "content_commitment": False,
        "key_encipherment": False,
        "data_encipherment": False,
        "key_agreement": False,
        "encipher_only": False,
        "decipher_only": False,
    }
    root = (
        builder(issuer, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(**usage, key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False
        )
        .sign(authority_key, hashes.SHA256())
    )
    leaf = (
        builder(subject, serving_key.public_key())
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage, key_cert_sign=False, crl_sign=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    write_private(
        key,
        serving_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
    write_private(certificate, leaf.public_bytes(serialization.Encoding.PEM))
    write_private(authority, root.public_bytes(serialization.Encoding.PEM))


def kubeconfig(url: str, credentials: Credentials) -> bytes:
    """Return a kubeconfig with one context that reaches the server."""
    authority = base64.b64encode(credentials.authority_pem).decode()
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": _CONTEXT, "cluster": {"server": url, "certificate-authority-data": authority}}
        ],
        "users": [{"name": _CONTEXT, "user": {"token": credentials.token}}],
        "contexts": [
            {
                "name": _CONTEXT,
                "context": {"cluster": _CONTEXT, "user": _CONTEXT, "namespace": "default"},
            }
        ],
        "current-context": _CONTEXT,
    }
    return yaml.safe_dump(document, sort_keys=False).encode()


def host_allowed(host: bytes, served: Collection[str] = ()) -> bool:
    """Whether a ``Host`` header names this machine's loopback, or what is served beside it.

    Refusing others keeps web pages out that rebind a name of theirs to our address.

    Args:
        served: Names and addresses in lower case, as in a URL.
    """
    found = _HOST.fullmatch(host.decode("latin-1").lower())
    return found is not None and (found.group(1) in _HOSTS or found.group(1) in served)


def origin_allowed(origin: bytes, url: str) -> bool:
    """Whether an ``Origin`` header is the server itself."""
    text = origin.decode("latin-1").lower()
    return text in (url, url.replace("127.0.0.1", "localhost"))
