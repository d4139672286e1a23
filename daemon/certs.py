"""Makes a job's certificates: a CA of its own, and for each node a certificate that names the host of its address.

The CA's key is forgotten unless it is asked for, so that nobody can make more of them. ECDSA with P-256 and SHA-256.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ckptd.ckpt.certs import (
    CA_FILE,
    CA_KEY_FILE,
    check_time,
    file_names,
    host_of,
    names_in,
    parse,
    parse_key,
    read,
    read_private,
)
from ckptd.ckpt.errors import AccessError, CkptdError, UsageError

DAYS_MAX = 3650
_EARLY = timedelta(days=1)
"""Good from a day ago on: the nodes' clocks need not agree."""
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_][a-z0-9_-]{0,62})*")


@dataclass(frozen=True, slots=True)
class Made:
    """What `make` has made."""

    directory: Path
    until: datetime
    """When the new certificates end."""
    nodes: tuple[int, ...]
    """Whose; others had theirs already."""
    ca_key: bool
    """Whether the CA's key is in the directory."""


@dataclass(frozen=True, slots=True)
class _Authority:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


def make(directory: Path, nodes: Sequence[str], *, now: datetime, days: int, keep_ca_key: bool = False) -> Made:
    """Make certificates for the nodes at these control addresses (host:port), good for so many days from `now` on.

    A new or empty directory gets a new CA. In one with the CA's key, the nodes get theirs that have none yet. No file is
    ever overwritten. Raises UsageError (an address that no certificate can name, days) and AccessError (the directory).
    """
    hosts = [_checked(address) for address in nodes]
    if not hosts or len(set(nodes)) != len(nodes):
        raise UsageError(
            f"--nodes {','.join(nodes)!r}: expected host:port of every node, each once, as `ckptd serve` gets it"
        )
    if not 1 <= days <= DAYS_MAX:
        raise UsageError(f"--days {days}: expected 1 to {DAYS_MAX}")
    with _place(directory):
        files: dict[str, bytes] = {}
        if (directory / CA_KEY_FILE).exists():
            authority, keep_ca_key = _load_authority(directory, now), True
            missing = [node for node, host in enumerate(hosts) if not _has(directory, node, host)]
        else:
            authority, missing = _new_authority(now, days), list(range(len(hosts)))
            files[CA_FILE] = authority.certificate.public_bytes(Encoding.PEM)
            if keep_ca_key:
                files[CA_KEY_FILE] = _pem(authority.key)
        until = min(now + timedelta(days=days), authority.certificate.not_valid_after_utc)
        for node in missing:
            certificate, key = _issue(authority, node, hosts[node], now - _EARLY, until)
            files |= dict(zip(file_names(node), (certificate.public_bytes(Encoding.PEM), _pem(key)), strict=True))
        _write(directory, files)
    return Made(directory, until, tuple(missing), keep_ca_key)


def _checked(address: str) -> str:
    host = host_of(address)
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_unspecified:
            raise UsageError(f"node address {address}: expected the address that the other nodes connect to")
        return host
    if len(host) > 253 or not _HOST.fullmatch(host):
        raise UsageError(f"node address {address}: no certificate can name this host; give a DNS name or an IP address")
    return host


# ---- keys and certificates ----------------------------------------------------------------------


def _new_authority(now: datetime, days: int) -> _Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"ckptd job CA {secrets.token_hex(8)}")
    builder = _builder(name, name, key, now - _EARLY, now + timedelta(days=days))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    return _Authority(key, builder.sign(key, SHA256()))


def _issue(
    authority: _Authority, node: int, host: str, start: datetime, until: datetime
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_name(f"ckptd node {node}"), authority.certificate.subject, key, start, until)
    try:
        alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        alternative = x509.DNSName(host)
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    issuer = authority.key.public_key()
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(both), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
    return builder.sign(authority.key, SHA256()), key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, start: datetime, until: datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(until)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates, key_cert_sign=signs_certificates, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, crl_sign=False, encipher_only=False,
        decipher_only=False,
    )  # fmt: skip


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


# ---- the directory ------------------------------------------------------------------------------


def _load_authority(directory: Path, now: datetime) -> _Authority:
    path, key_path = directory / CA_FILE, directory / CA_KEY_FILE
    certificate, key = parse(path, read(path)), parse_key(key_path, read_private(key_path))
    check_time(path, certificate, now)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise AccessError(f"{key_path} is not the key of {path}; choose another directory")
    return _Authority(key, certificate)


def _has(directory: Path, node: int, host: str) -> bool:
    """Whether the node has a certificate already. Raises AccessError when it is for another host."""
    path, key_path = (directory / name for name in file_names(node))
    if not path.exists():
        return False
    found = names_in(parse(path, read(path)))
    if host not in found:
        raise AccessError(
            f"{path} was made for {', '.join(found)}, node {node} is {host} now; remove it and {key_path} to make new ones"
        )
    return True


@contextlib.contextmanager
def _place(directory: Path) -> Iterator[None]:
    """A directory to make certificates in: new, empty, or with a CA's key. One that was made is removed on failure."""
    try:
        directory.mkdir(mode=0o700, parents=True)
        is_new = True
    except FileExistsError:
        is_new = False
    except OSError as error:
        raise AccessError(f"cannot make {directory}: {error.strerror}; choose another directory") from error
    try:
        if not is_new:
            _check_place(directory)
        yield
    except (CkptdError, OSError):
        if is_new:
            directory.rmdir()
        raise


def _check_place(directory: Path) -> None:
    try:
        status, names = directory.stat(), [path.name for path in directory.iterdir()]
    except OSError as error:
        raise AccessError(f"cannot use {directory}: {error.strerror}; choose another directory") from error
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != os.getuid() or mode & 0o077:
        raise AccessError(f"{directory} (mode {mode:o}) is not yours alone; choose another, or chmod 700 it")
    if names and CA_KEY_FILE not in names:
        raise AccessError(
            f"{directory} is not empty and has no {CA_KEY_FILE} to make more with; nothing is overwritten, choose another"
        )


def _write(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write new files, keys for their owner alone: all of them, or none."""
    written = []
    try:
        for name, content in files.items():
            mode = 0o600 if name.endswith(".key") else 0o644
            path = directory / name
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            written.append(path)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
    except OSError as error:
        for path in written:
            path.unlink()
        raise AccessError(f"cannot write {error.filename or directory}: {error.strerror}; nothing was made") from error
