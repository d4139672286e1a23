"""What gRPC makes of bytes that no peer would send. In a process of its own: its C++ half may end it."""

from __future__ import annotations

import subprocess
import sys

_CALL = """
import socket, struct, threading, grpc
def frame(kind, payload):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, 0]) + bytes(4) + payload
def serve():
    for _ in range(10):  # a call that nobody has begun to answer is made again
        peer, _ = listener.accept()
        peer.sendall(frame(4, b""))  # SETTINGS
        heard = peer.makefile("rb")
        heard.read(24)  # the preface
        kind = 0
        while kind != 1:  # HEADERS: the call is under way
            head = heard.read(9)
            kind = head[3]
            heard.read(int.from_bytes(head[:3], "big"))
        peer.sendall(frame(7, struct.pack(">II", 0, 0xF8858A5D)))  # GOAWAY, for a reason that does not exist
        peer.shutdown(socket.SHUT_RDWR)
listener = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=serve, daemon=True).start()
channel = grpc.insecure_channel(f"127.0.0.1:{listener.getsockname()[1]}")
try:
    channel.unary_unary("/ckptd.Peer/Deliver")(b"", timeout=10.0)
except grpc.RpcError as error:
    print(error.code().name)
"""


def test_a_goaway_with_a_flipped_bit_ends_the_call_and_not_the_process() -> None:
    """A network that damages bytes made daemons abort, with gRPC 1.84 and 1.85 (`ckptd drill`, link=0-1:corrupt:2)."""
    done = subprocess.run([sys.executable, "-c", _CALL], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "UNAVAILABLE"), done.stderr
