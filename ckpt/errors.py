"""What can go wrong, as one tree. Each class says whose fault it is and which exit code the command line ends with.

    CkptdError                     1
    ├── UsageError                 2   the caller's arguments, configuration or objects
    │   └── StateError             2   a state that cannot be captured (not Stateful, needs pickle, ...)
    ├── MemoryBudgetError          1   the tmpfs or the budget cannot hold what was asked for
    ├── DaemonUnavailable          1   no daemon answers on this node
    ├── AccessError                1   wrong job, wrong secret, wrong user
    ├── PeerError                  1   another node failed or said something impossible
    ├── StorageError               1   the disk or the object store failed
    ├── CorruptionError            1   bytes that do not match their checksum, or a malformed format
    ├── StaleStepError             1   a step or an epoch that goes backwards
    └── Unrecoverable              1   more was lost than memory and storage can give back

Messages state what was found, what was expected, and what to do next.
"""


class CkptdError(Exception):
    """Base of everything that ckptd raises on purpose."""

    exit_code = 1


class UsageError(CkptdError):
    """The caller's arguments, configuration or objects cannot work."""

    exit_code = 2


class StateError(UsageError):
    """A training state that cannot be captured; names the path inside the state."""


class MemoryBudgetError(CkptdError):
    """The tmpfs or the configured budget is too small; names both numbers in bytes."""


class DaemonUnavailable(CkptdError):
    """No daemon answers on this node's socket."""


class AccessError(CkptdError):
    """Wrong job, wrong secret, or a socket that belongs to somebody else."""


class PeerError(CkptdError):
    """Another node failed, closed the connection, or answered outside the protocol."""


class StorageError(CkptdError):
    """A storage root cannot be read or written."""


class CorruptionError(CkptdError):
    """Bytes that fail their checksum, or a header, manifest or record that is not valid."""


class StaleStepError(CkptdError):
    """A step or an epoch that is not newer than the last one."""


class Unrecoverable(CkptdError):
    """More was lost than the memory tier and storage together can give back."""
