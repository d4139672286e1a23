"""Mutual TLS between daemons: the control plane's ports and channels, and why two of them do not come together.

gRPC says "unavailable" for everything that may be wrong, at most with a number of its library. So what a node answers is
looked at once more with Python's own TLS, which gives the reason.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence

import grpc

from ckptd.ckpt.certs import file_names, host_of
from ckptd.ckpt.config import Tls, split_address

_LOOK_S = 1.0
_ALL_OR_NONE = "give every node --tls-dir, or none"
_ONE_RUN = "give every node the files of one run of `ckptd certs`"


def listen(server: grpc.Server, address: str, tls: Tls | None) -> int:
    """Let the server listen at host:port, with mutual TLS if it is configured; the port. Raises RuntimeError."""
    if tls is None:
        return server.add_insecure_port(address)
    pair = (tls.key, tls.certificate)
    credentials = grpc.ssl_server_credentials([pair], root_certificates=tls.ca, require_client_auth=True)
    return server.add_secure_port(address, credentials)


def channel(address: str, tls: Tls | None, options: Sequence[tuple[str, int]]) -> grpc.Channel:
    """A channel to the daemon at host:port; with TLS its certificate must be of our CA and name the host."""
    if tls is None:
        return grpc.insecure_channel(address, options=options)
    credentials = grpc.ssl_channel_credentials(tls.ca, tls.key, tls.certificate)
    return grpc.secure_channel(address, credentials, options=options)


def mismatch(address: str, tls: Tls | None) -> str:
    """Why TLS comes between us and the daemon that listens at host:port; "" when nobody listens, or that is not why.

    Connects, and takes up to a few seconds.
    """
    host, port = split_address(address)
    try:
        context = _context(tls)
        with (
            socket.create_connection((host.strip("[]"), port), timeout=_LOOK_S) as connection,
            context.wrap_socket(connection, server_hostname=host_of(address)) as secured,
        ):
            if tls is None:
                return f"it speaks TLS and this daemon does not; {_ALL_OR_NONE}"
            # Whether it takes our certificate shows only after the handshake: it goes on, or hangs up, with a reason or not.
            if not secured.recv(1):
                return f"it refuses this daemon's certificate; {_ONE_RUN}"
    except ssl.SSLCertVerificationError as error:
        return f"its certificate is refused here: {error.verify_message.rstrip('.')}; {_ONE_RUN}"
    except ssl.SSLError as error:
        reason = error.reason or ""
        if "ALERT" in reason:
            return f"it refuses this daemon's certificate ({reason.lower().replace('_', ' ')}); {_ONE_RUN}"
        if tls is not None and reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"):
            return f"it does not speak TLS and this daemon does; {_ALL_OR_NONE}"
    except OSError:  # nobody listens, or does not answer: TLS is not why
        pass
    return ""


def _context(tls: Tls | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    if tls is None:  # only to see whether TLS is spoken: nothing is sent
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    else:
        certificate, key = file_names(tls.node)
        context.load_verify_locations(cadata=tls.ca.decode())
        context.load_cert_chain(tls.directory / certificate, tls.directory / key)
    return context
