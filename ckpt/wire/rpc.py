"""What both ends of the local gRPC service share: its methods, and errors that keep their class across the socket."""

from __future__ import annotations

import grpc
from google.protobuf.message import Message

from ckptd.ckpt import errors
from ckptd.ckpt.wire import ckptd_pb2 as pb

LOCAL = "ckptd.v1.Local"
PEER = "ckptd.v1.Peer"

METHODS: dict[str, tuple[type[Message], type[Message]]] = {
    "Attach": (pb.AttachRequest, pb.AttachReply),
    "Decide": (pb.DecideRequest, pb.DecideReply),
    "Join": (pb.JoinRequest, pb.Empty),
    "Gather": (pb.GatherRequest, pb.GatherReply),
    "Release": (pb.GatherRequest, pb.Empty),
    "Open": (pb.GatherRequest, pb.GatherReply),
    "Bring": (pb.BringRequest, pb.Empty),
    "Shut": (pb.BringRequest, pb.Empty),
    "Reserve": (pb.ReserveRequest, pb.ReserveReply),
    "Lend": (pb.LendRequest, pb.LendReply),
    "Begin": (pb.BeginRequest, pb.BeginReply),
    "Commit": (pb.CommitRequest, pb.Empty),
    "Abort": (pb.AbortRequest, pb.Empty),
    "Persist": (pb.PersistRequest, pb.PersistReply),
    "Wait": (pb.WaitRequest, pb.WaitReply),
    "Status": (pb.Empty, pb.Document),
    "List": (pb.Empty, pb.Document),
    "Verify": (pb.Empty, pb.Document),
    "Recover": (pb.Empty, pb.Document),
    "Incidents": (pb.IncidentsRequest, pb.Document),
    "Tend": (pb.TendRequest, pb.TendReply),
    "Leave": (pb.LeaveRequest, pb.Empty),
    "Restart": (pb.RestartRequest, pb.Document),
}
"""The local service: name, request, reply."""

ERROR_KEY = "ckptd-error"
"""Trailing metadata that names the class of `ckptd.ckpt.errors` behind a failed call."""

MESSAGE_MAX = 256 * 1024 * 1024


def status_of(error: errors.CkptdError) -> grpc.StatusCode:
    """The closest gRPC status, for tools that know nothing of ckptd."""
    if isinstance(error, errors.UsageError):
        return grpc.StatusCode.INVALID_ARGUMENT
    if isinstance(error, errors.AccessError):
        return grpc.StatusCode.PERMISSION_DENIED
    if isinstance(error, errors.MemoryBudgetError):
        return grpc.StatusCode.RESOURCE_EXHAUSTED
    if isinstance(error, errors.Unrecoverable | errors.CorruptionError):
        return grpc.StatusCode.DATA_LOSS
    return grpc.StatusCode.FAILED_PRECONDITION


def error_of(call: grpc.RpcError, what: str) -> errors.CkptdError:
    """The error that the other side raised, or DaemonUnavailable when it did not answer."""
    code, details = call.code(), call.details() or ""
    name = {str(item.key): item.value for item in call.trailing_metadata() or ()}.get(ERROR_KEY)
    known = getattr(errors, str(name), None)
    if isinstance(known, type) and issubclass(known, errors.CkptdError):
        return known(details)
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
        return errors.DaemonUnavailable(f"{what}: the daemon does not answer ({code.name.lower()}); is it running?")
    return errors.CkptdError(f"{what}: {code.name.lower()}: {details}")
