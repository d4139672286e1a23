"""A node's certificate and key for mutual TLS: read from a directory of `ckptd certs`, and checked before anything starts.

What TLS would refuse in the middle of a handshake, with a number, is refused here by name.
"""

from __future__ import annotations

import ipaddress
import stat
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from ckptd.ckpt.config import Tls, split_address
from ckptd.ckpt.disk import read_small
from ckptd.ckpt.errors import AccessError, StorageError

CA_FILE, CA_KEY_FILE = "ca.pem", "ca.key"
_FILE_MAX = 64 * 1024
_ANEW = "make new ones with `ckptd certs` and restart every daemon with them"
_ONE_RUN = "all nodes need the files of one run of `ckptd certs`"


def file_names(node: int) -> tuple[str, str]:
    """The names of a node's certificate and of its key."""
    return f"node-{node}.pem", f"node-{node}.key"


def load(directory: Path, node: int, address: str, now: datetime) -> Tls:
    """What node `node`, whose control address is `address` (host:port), needs out of `directory`.

    `now` has a time zone. Raises AccessError naming the file, what is wrong with it and what to do.
    """
    certificate_path, key_path = (directory / name for name in file_names(node))
    ca_pem, certificate_pem = read(directory / CA_FILE), read(certificate_path)
    key_pem = read_private(key_path)
    ca, certificate = parse(directory / CA_FILE, ca_pem), parse(certificate_path, certificate_pem)
    check_time(directory / CA_FILE, ca, now)
    check_time(certificate_path, certificate, now)
    try:
        certificate.verify_directly_issued_by(ca)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise AccessError(f"{certificate_path} was not issued by {directory / CA_FILE}; {_ONE_RUN}") from error
    if parse_key(key_path, key_pem).public_key() != certificate.public_key():
        raise AccessError(f"{key_path} is not the key of {certificate_path}; {_ONE_RUN}")
    host = host_of(address)
    if host not in (found := names_in(certificate)):
        made_for = ", ".join(found) or "nobody"
        raise AccessError(
            f"{certificate_path} was made for {made_for}, this node's address is {address}; correct --nodes or --node, or "
            f"{_ANEW}"
        )
    until = min(ca.not_valid_after_utc, certificate.not_valid_after_utc)
    return Tls(directory=directory, node=node, ca=ca_pem, certificate=certificate_pem, key=key_pem, until=until)


def host_of(address: str) -> str:
    """The host of host:port as a certificate names it: lower case, an IP address in its usual form. Raises UsageError."""
    host = split_address(address)[0].strip("[]").lower()
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host


def names_in(certificate: x509.Certificate) -> tuple[str, ...]:
    """The hosts that a certificate is good for, as `host_of` writes them."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    addresses = names.get_values_for_type(x509.IPAddress)
    return (*(name.lower() for name in names.get_values_for_type(x509.DNSName)), *map(str, addresses))


def parse(path: Path, pem: bytes) -> x509.Certificate:
    """The certificate in the content of `path`. Raises AccessError."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise AccessError(f"{path} is no certificate in PEM form; copy it again from where it was made") from error


def parse_key(path: Path, pem: bytes) -> PrivateKeyTypes:
    """The private key in the content of `path`. Raises AccessError."""
    try:
        return load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: it has a password
        raise AccessError(
            f"{path} is no private key in PEM form without a password; copy it again from where it was made"
        ) from error


def check_time(path: Path, certificate: x509.Certificate, now: datetime) -> None:
    """Raise AccessError unless the certificate, which came from `path`, is good at `now`."""
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > end:
        raise AccessError(f"{path} has expired on {end:%Y-%m-%d}; {_ANEW}")
    if now < start:
        raise AccessError(
            f"{path} is good from {start:%Y-%m-%d} on, here it is {now:%Y-%m-%d}; set this machine's clock"
        )


def read(path: Path) -> bytes:
    """The content of a certificate file. Raises AccessError."""
    try:
        return read_small(path, _FILE_MAX)
    except StorageError as error:
        raise AccessError(f"{error}; copy it from where `ckptd certs` made it, readable by you") from error


def read_private(path: Path) -> bytes:
    """The content of a key file. Raises AccessError when it can't be read or others may read it too."""
    content = read(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise AccessError(f"{path}: others may read it (mode {mode:o}); chmod 600 it")
    return content
