"""Probes of the machine, as plugins: entry point group `ckptd.probes`, a function without arguments that makes a probe.

A probe says in words what is wrong with this node, now, or that it finds nothing to look at. It may take a second, and is
asked every EVERY_S, never in a trainer.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

log = logging.getLogger(__name__)

EVERY_S = 10.0
GROUP = "ckptd.probes"
FINDINGS_MAX = 8
FINDING_CHARS = 200
_INFINIBAND = Path("/sys/class/infiniband")
_COUNTERS = (
    *(
        f"counters/{name}"
        for name in (
            "link_downed",
            "symbol_error",
            "port_rcv_errors",
            "port_xmit_discards",
            "local_link_integrity_errors",
        )
    ),
    # RoCE has no symbols to count: what is lost on Ethernet shows where the adapter sends again or gives up.
    *(
        f"hw_counters/{name}"
        for name in ("packet_seq_err", "local_ack_timeout_err", "rnr_nak_retry_err", "req_transport_retries_exceeded")
    ),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a probe says."""

    here: bool
    """Whether there is anything to look at on this node."""
    wrong: tuple[str, ...] = ()
    """What is wrong, since the last look, in words."""
    sick: str = ""
    """Why this node should not be used, by somebody who is to know; '' if nobody says so. The judge hears it."""


class Probe(Protocol):
    """One kind of hardware."""

    name: str

    def look(self) -> Finding: ...


class InfinibandProbe:
    """Error counters of InfiniBand and RoCE ports that have grown, and ports that are down."""

    name = "infiniband"

    def __init__(self, root: Path = _INFINIBAND) -> None:
        self._root = root
        self._before: dict[Path, int] = {}

    def look(self) -> Finding:
        ports = sorted(self._root.glob("*/ports/*"))[:64]
        wrong = []
        for port in ports:
            where = f"{port.parent.parent.name} port {port.name}"
            state = _text(port / "state")
            if state and "ACTIVE" not in state:
                wrong.append(f"{where} is {state}")
            for counter in _COUNTERS:
                path = port / counter
                value = _text(path)
                if not value.isdecimal():
                    continue
                before = self._before.get(path)
                self._before[path] = int(value)
                if before is not None and int(value) > before:
                    wrong.append(f"{where}: {path.name} grew by {int(value) - before}")
        return Finding(bool(ports), tuple(wrong))


class NvmlProbe:
    """Uncorrected ECC errors and XIDs of NVIDIA's GPUs, through nvidia-ml-py where that and a driver are installed."""

    name = "nvml"

    def __init__(self, nvml: Any = None) -> None:
        """`nvml`: another module than pynvml, for tests."""
        self._nvml = nvml if nvml is not None else _nvml()
        self._before: dict[int, int] = {}
        self._events: Any = None
        if self._nvml is not None:
            self._listen()

    def look(self) -> Finding:
        nvml = self._nvml
        if nvml is None:
            return Finding(here=False)
        wrong = []
        for index in range(nvml.nvmlDeviceGetCount()):
            device = nvml.nvmlDeviceGetHandleByIndex(index)
            try:
                count = nvml.nvmlDeviceGetTotalEccErrors(
                    device, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
                )
            except nvml.NVMLError:  # a GPU without ECC
                continue
            before = self._before.get(index, count)
            self._before[index] = count
            if count > before:
                wrong.append(f"GPU {index}: {count - before} uncorrected ECC errors")
        return Finding(here=True, wrong=(*wrong, *self._xids()))

    def _listen(self) -> None:
        nvml = self._nvml
        self._events = nvml.nvmlEventSetCreate()
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                device = nvml.nvmlDeviceGetHandleByIndex(index)
                nvml.nvmlDeviceRegisterEvents(device, nvml.nvmlEventTypeXidCriticalError, self._events)
            except nvml.NVMLError as error:
                log.info("GPU %d tells of no XIDs: %s", index, error)

    def _xids(self) -> list[str]:
        found: list[str] = []
        while len(found) < FINDINGS_MAX:
            try:
                event = self._nvml.nvmlEventSetWait_v2(self._events, 0)
            except self._nvml.NVMLError:  # none is left
                break
            found.append(f"GPU: XID {event.eventData}")
        return found


class Plugins:
    """All probes of this node, asked by a thread of their own: one that hangs silences the others and nobody else."""

    def __init__(self, probes: Iterable[Probe]) -> None:
        self._probes = list(probes)
        self._lock = threading.Lock()
        self._found: dict[str, Finding] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="plugins", daemon=True)
        self._thread.start()

    def findings(self) -> list[str]:
        """What was wrong at the last look."""
        with self._lock:
            said = [f"{name}: {text}"[:FINDING_CHARS] for name, found in self._found.items() for text in found.wrong]
        return said[:FINDINGS_MAX]

    def sick(self) -> str:
        """Why this node should not be used, by the last look; '' if nobody says so."""
        with self._lock:
            said = [f"{name}: {found.sick}" for name, found in self._found.items() if found.sick]
        return "; ".join(said)[:FINDING_CHARS]

    def close(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        while self._probes:
            for probe in list(self._probes):
                self._ask(probe)
            if self._stop.wait(EVERY_S):
                return

    def _ask(self, probe: Probe) -> None:
        try:
            found = probe.look()
        except Exception as error:  # noqa: BLE001 - somebody else's code: it must not end the watching
            log.warning("probe %s failed and is not asked again: %s", probe.name, error)
            self._probes.remove(probe)
            return
        if not found.here:
            log.info("probe %s: not here", probe.name)
            self._probes.remove(probe)
        with self._lock:
            self._found[probe.name] = found


def installed() -> list[Probe]:
    """The probes that are installed on this node; one that can't be loaded is said and left out."""
    probes: list[Probe] = []
    for entry in entry_points(group=GROUP):
        try:
            probes.append(entry.load()())
        except Exception as error:  # noqa: BLE001 - somebody else's code: it must not keep the daemon from starting
            log.warning("probe %s can't be loaded: %s", entry.name, error)
    return probes


def _nvml() -> Any:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def _text(path: Path) -> str:
    try:
        with path.open() as file:
            return file.read(64).strip()
    except (OSError, UnicodeDecodeError):
        return ""
