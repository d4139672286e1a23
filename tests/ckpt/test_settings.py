"""Settings: argument before environment before file before default, and every mistake is one clear error."""

from __future__ import annotations

import os
import tempfile
from datetime import datetime, timezone
from pathlib import Path

import pytest

from ckptd.ckpt import settings
from ckptd.ckpt.errors import AccessError, UsageError
from ckptd.ckpt.settings import read, read_secret, runtime_root
from ckptd.daemon.certs import make


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No CKPTD_* or SLURM_* variable, no pod, and a working directory of the test's own."""
    for name in list(os.environ):
        if name.startswith(("CKPTD_", "SLURM")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(settings, "POD_LABELS", tmp_path / "podinfo" / "labels")
    monkeypatch.chdir(tmp_path)


def test_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument beats the environment, that beats ckptd.toml, and that beats the default."""
    assert (read().job, read().slots) == ("default", 3)
    Path("ckptd.toml").write_text('job = "file"\nslots = 4\nsomething_newer = 1\n')
    assert (read().job, read().slots) == ("file", 4)
    monkeypatch.setenv("CKPTD_JOB", "environment")
    assert (read().job, read().slots) == ("environment", 4)
    assert (read(job="argument").job, read(job="argument").slots) == ("argument", 4)
    assert read(job=None, slots=None).job == "environment"


def test_every_field_reaches_the_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What can be set has an effect, and relative paths are taken from the working directory."""
    secret = tmp_path / "secret"
    secret.write_text("  " + "ab" * 16 + "\n")
    secret.chmod(0o600)
    make(tmp_path / "certs", ["127.0.0.1:7", "127.0.0.2:8"], now=datetime.now(timezone.utc), days=9)
    values = {
        "JOB": "j", "NODE": "1", "NODES": "127.0.0.1:7, 127.0.0.2:8,", "PARITY": "0", "GROUP_SIZE": "4", "RUN_DIR": "r",
        "SEGMENT_DIR": "s", "STORAGE": "p", "PERSIST_EVERY": "5", "MTBF_NODE_S": "5e6", "SLOTS": "2", "MEMORY_BYTES": "1000",
        "SECRET_FILE": "secret", "NICE": "3", "KEEP_LAST": "4", "KEEP_EVERY": "100", "KEEP_FOR": "7d", "DOMAIN": "rack-7",
        "DOMAIN_LABEL": "rack", "SCRUB_EVERY_S": "60", "LEAVE_AFTER_S": "30",
        "BANDWIDTH_BYTES_S": "5000000", "CPU_SHARE": "0.5", "STUCK_AFTER_S": "90",
        "TLS_DIR": "certs", "ACT": "advise", "HEALTH_SOCKET": "nhc.sock",
    }  # fmt: skip
    assert {name.lower() for name in values} == set(settings.Settings.model_fields)
    for name, value in values.items():
        monkeypatch.setenv(f"CKPTD_{name}", value)
    config = read().config()
    assert config.nodes == ("127.0.0.1:7", "127.0.0.2:8")
    assert (config.job, config.node, config.parity, config.group_size) == ("j", 1, 0, 4)
    assert (config.run_dir, config.segment_dir, config.storage) == (tmp_path / "r", tmp_path / "s", tmp_path / "p")
    assert (config.persist_every, config.slots, config.memory_bytes, config.nice) == (5, 2, 1000, 3)
    assert (config.keep_last, config.keep_every, config.stuck_after_s) == (4, 100, 90.0)
    assert config.keep_for_s == 7 * 86400.0
    assert (config.domain, config.act, config.health_socket) == ("rack-7", "advise", tmp_path / "nhc.sock")
    assert (config.scrub_every_s, config.timing.leave_after_s) == (60.0, 30.0)
    assert (config.bandwidth_bytes_s, config.cpu_share) == (5_000_000, 0.5)
    assert config.secret == b"ab" * 16
    assert "ab" * 16 not in repr(config)
    assert config.tls is not None
    assert (config.tls.directory, config.tls.node) == (tmp_path / "certs", 1)


def pod(content: bytes) -> None:
    settings.POD_LABELS.parent.mkdir()
    settings.POD_LABELS.write_bytes(content)


def test_the_domain_comes_from_the_surest_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Host's variable, pod labels, Slurm, ckptd.toml, CKPTD_DOMAIN, argument: each beats those before it."""
    assert read().config().domain == ""
    monkeypatch.setenv("CKPTD_NODE_DOMAIN", "host")
    assert read().config().domain == "host"
    pod(b'app="x"\ntopology.kubernetes.io/zone="zone"\nmine="label"')
    assert read().config().domain == "zone"
    assert read(domain_label="mine").config().domain == "label"
    monkeypatch.setenv("SLURM_TOPOLOGY_ADDR", "root.leaf7.node12")
    monkeypatch.setenv("SLURM_TOPOLOGY_ADDR_PATTERN", "switch.switch.node")
    assert read().config().domain == "leaf7"
    Path("ckptd.toml").write_text('domain = "file"\n')
    assert read().config().domain == "file"
    monkeypatch.setenv("CKPTD_DOMAIN", "variable")
    assert read().config().domain == "variable"
    assert read(domain="argument").config().domain == "argument"
    assert read(domain="argument").found_domain().source == "setting domain"
    assert read(domain="none").config().domain == ""


@pytest.mark.parametrize("content", [b"\xff", b"x" * ((1 << 18) + 1), b'topology.kubernetes.io/zone="a b"'])
def test_pod_labels_that_make_no_sense(content: bytes) -> None:
    """Labels that are no text, too long or outside the alphabet are an error; a domain of one's own goes before them."""
    pod(content)
    with pytest.raises(UsageError, match="pod label"):
        read().config()
    assert read(domain="rack-7").config().domain == "rack-7"


def test_pod_labels_that_cannot_be_read() -> None:
    """A directory in the place of the labels is an error that names it; no file is none."""
    settings.POD_LABELS.mkdir(parents=True)
    with pytest.raises(UsageError, match=r"pod labels .*podinfo/labels: .*Is a directory"):
        read().config()
    settings.POD_LABELS.rmdir()
    assert read().found_domain().source == "set `domain` where nodes can fail together"


def test_defaults_are_enough_for_one_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without any setting there is a valid configuration, with directories of this user and job."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    config = read(job="j").config()
    assert config.run_dir == tmp_path / "ckptd" / "j"
    assert config.segment_dir == Path(f"/dev/shm/ckptd-{os.getuid()}/j-0")  # nothing that users share
    assert config.storage is None
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert runtime_root() == Path(tempfile.gettempdir()) / f"ckptd-{os.getuid()}"


@pytest.mark.parametrize(
    ("name", "value"), [("NODE", "one"), ("SLOTS", "2.5"), ("PERSIST_EVERY", ""), ("MEMORY_BYTES", "64MB")]
)
def test_a_value_of_another_type(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """The error names the setting and what was found."""
    monkeypatch.setenv(f"CKPTD_{name}", value)
    with pytest.raises(UsageError, match=f"setting {name.lower()}: .*found {value!r}"):
        read()


@pytest.mark.parametrize("content", [b"job = ", b"job = 'a'\njob = 'b'\n", b"job = '\xff'\n", b"slots = 'two'\n"])
def test_a_bad_file(content: bytes) -> None:
    """A ckptd.toml that can't be read, or that holds a wrong value, is a usage error that says where."""
    Path("ckptd.toml").write_bytes(content)
    with pytest.raises(UsageError, match=r"ckptd\.toml|slots"):
        read()


def test_an_unreadable_file() -> None:
    """A directory in the place of ckptd.toml is named too, or counts as no file."""
    Path("ckptd.toml").mkdir()
    assert read().job == "default"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o610])
def test_a_secret_that_others_may_read(tmp_path: Path, mode: int) -> None:
    """A secret file that is not its owner's alone is refused, with the mode and the remedy."""
    path = tmp_path / "secret"
    path.write_text("a" * 32)
    path.chmod(mode)
    with pytest.raises(AccessError, match=rf"secret: others may read it \(mode {mode:o}\); chmod 600 it"):
        read_secret(path)
    path.chmod(0o600)
    assert read_secret(path) == b"a" * 32


def test_a_secret_that_is_not_there(tmp_path: Path) -> None:
    """A missing secret file, or a directory, is an error with the remedy."""
    for path in (tmp_path / "gone", tmp_path):
        with pytest.raises(AccessError, match="make one readable by you alone"):
            read_secret(path)
