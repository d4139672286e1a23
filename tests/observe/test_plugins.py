"""Probes of the machine: what they find is said, where there is nothing they say so, and a broken one harms nobody."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from tests.cluster import until

from ckptd.daemon.observe.plugins import FINDING_CHARS, Finding, InfinibandProbe, NvmlProbe, Plugins


class Says:
    """A probe that says what it is told to."""

    def __init__(self, name: str, *wrong: str, here: bool = True) -> None:
        self.name, self._found, self.asked = name, Finding(here, wrong), 0

    def look(self) -> Finding:
        self.asked += 1
        return self._found


class Broken:
    """A probe that fails."""

    name = "broken"

    def look(self) -> Finding:
        raise RuntimeError("no such luck")


def test_findings_are_said_and_a_broken_probe_harms_nobody() -> None:
    """Each with the probe's name, and no longer than there is room."""
    plugins = Plugins([Broken(), Says("gpu", "x" * 1000), Says("net", here=False)])
    try:
        until(plugins.findings, "the findings")
        assert [text[:6] for text in plugins.findings()] == ["gpu: x"]
        assert len(plugins.findings()[0]) == FINDING_CHARS
    finally:
        plugins.close()


def test_infiniband_counts_what_grows(tmp_path: Path) -> None:
    """Old errors are nobody's news; new ones are, and so is a port that is down."""
    probe = InfinibandProbe(tmp_path)
    assert not probe.look().here
    counters = tmp_path / "mlx5_0" / "ports" / "1" / "counters"
    counters.mkdir(parents=True)
    (counters.parent / "state").write_text("4: ACTIVE\n")
    (counters / "link_downed").write_text("7\n")
    (counters / "symbol_error").write_text("nonsense\n")
    assert probe.look() == Finding(here=True)
    (counters / "link_downed").write_text("9\n")
    (counters.parent / "state").write_text("1: DOWN\n")
    assert probe.look().wrong == ("mlx5_0 port 1 is 1: DOWN", "mlx5_0 port 1: link_downed grew by 2")


def test_roce_counts_what_has_to_be_sent_again(tmp_path: Path) -> None:
    """Its losses are none of InfiniBand's own counters."""
    port = tmp_path / "rocep1s0" / "ports" / "1"
    (port / "hw_counters").mkdir(parents=True)
    (port / "state").write_text("4: ACTIVE\n")
    for name in ("packet_seq_err", "rx_read_requests"):
        (port / "hw_counters" / name).write_text("1000\n")
    probe = InfinibandProbe(tmp_path)
    assert probe.look() == Finding(here=True)
    for name in ("packet_seq_err", "rx_read_requests"):
        (port / "hw_counters" / name).write_text("1042\n")
    assert probe.look().wrong == ("rocep1s0 port 1: packet_seq_err grew by 42",)


def test_nvml_tells_ecc_errors_and_xids() -> None:
    """Of each GPU what is new; a GPU without ECC is none of its business."""

    class NVMLError(Exception):
        pass

    counts, xids = {0: 5}, [79]

    def errors(device: int, *_: object) -> int:
        if device not in counts:
            raise NVMLError
        return counts[device]

    def wait(*_: object) -> SimpleNamespace:
        if not xids:
            raise NVMLError
        return SimpleNamespace(eventData=xids.pop())

    nvml = SimpleNamespace(
        NVMLError=NVMLError, NVML_MEMORY_ERROR_TYPE_UNCORRECTED=1, NVML_VOLATILE_ECC=0, nvmlEventTypeXidCriticalError=8,
        nvmlDeviceGetCount=lambda: 2, nvmlDeviceGetHandleByIndex=lambda index: index, nvmlDeviceGetTotalEccErrors=errors,
        nvmlEventSetCreate=lambda: 1, nvmlDeviceRegisterEvents=lambda *_: None, nvmlEventSetWait_v2=wait,
    )  # fmt: skip
    probe = NvmlProbe(nvml)
    assert probe.look().wrong == ("GPU: XID 79",)
    counts[0] = 6
    assert probe.look().wrong == ("GPU 0: 1 uncorrected ECC errors",)
