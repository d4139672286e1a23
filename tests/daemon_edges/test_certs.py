"""The files of `ckptd certs`: what is made can be used, and what can't is refused by name before anything starts."""

from __future__ import annotations

import json
import shutil
import stat
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from ckptd.ckpt.certs import host_of, load, names_in
from ckptd.ckpt.errors import AccessError, UsageError
from ckptd.daemon import cli
from ckptd.daemon.certs import Made, make

NODES = ("host0:7700", "10.0.0.2:7700", "[fd00::3]:7700", "Host0:7701")
NOW = datetime(2026, 11, 24, 12, tzinfo=timezone.utc)
DAY = timedelta(days=1)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A job's certificates, good for 100 days."""
    return made(tmp_path / "certs").directory


def made(directory: Path, nodes: tuple[str, ...] = NODES, now: datetime = NOW, **options: Any) -> Made:
    return make(directory, nodes, now=now, days=options.pop("days", 100), **options)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ---- making -------------------------------------------------------------------------------------


def test_what_is_made_can_be_loaded(directory: Path) -> None:
    """Every node's files load at its address, and end when they were asked to; keys are their owner's alone."""
    for node, address in enumerate(NODES):
        tls = load(directory, node, address, NOW)
        assert (tls.node, tls.until, tls.days_left(NOW)) == (node, NOW + 100 * DAY, 100)
        assert tls.key.startswith(b"-----BEGIN PRIVATE KEY")
        assert b"PRIVATE" not in repr(tls).encode()
        assert mode(directory / f"node-{node}.key") == 0o600
    assert mode(directory) == 0o700
    assert len(list(directory.iterdir())) == 1 + 2 * len(NODES)


def test_certificates_are_what_tls_expects(directory: Path) -> None:
    """P-256 keys, each its own; for servers and clients alike; only the CA may issue, and nothing below it may."""
    ca, *certificates = (
        x509.load_pem_x509_certificate((directory / name).read_bytes())
        for name in ("ca.pem", *(f"node-{node}.pem" for node in range(len(NODES))))
    )
    keys = [certificate.public_key() for certificate in (ca, *certificates)]
    assert all(isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp256r1" for key in keys)
    assert len({str(certificate.serial_number) for certificate in (ca, *certificates)}) == 1 + len(NODES)
    assert [names_in(certificate) for certificate in certificates] == [
        ("host0",),
        ("10.0.0.2",),
        ("fd00::3",),
        ("host0",),
    ]
    limits = ca.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (limits.ca, limits.path_length) == (True, 0)
    for certificate in certificates:
        assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert {x509.oid.ExtendedKeyUsageOID.SERVER_AUTH, x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH} == set(purposes)


def test_nothing_is_overwritten(directory: Path, tmp_path: Path) -> None:
    """A directory that has certificates, or anything else, is refused and stays as it is."""
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    with pytest.raises(AccessError, match=r"not empty and has no ca\.key.*nothing is overwritten, choose another"):
        made(directory)
    assert before == {path.name: path.read_bytes() for path in directory.iterdir()}
    (tmp_path / "file").write_text("x")
    for taken in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(AccessError, match="choose another"):
            made(taken)


def test_a_directory_that_others_may_enter(tmp_path: Path) -> None:
    """Keys are not put where others could get them; an empty directory of one's own will do."""
    place = tmp_path / "open"
    place.mkdir()
    place.chmod(0o750)
    with pytest.raises(AccessError, match=r"open \(mode 750\) is not yours alone; choose another, or chmod 700 it"):
        made(place)
    place.chmod(0o700)
    assert made(place).nodes == (0, 1, 2, 3)


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full half way, no certificate without a key is left, nor the directory."""
    opened: list[str] = []
    import os as real

    open_ = real.open

    def full(path: Path, *arguments: Any) -> int:
        opened.append(path.name)
        if len(opened) == 4:
            raise OSError(28, "No space left on device", str(path))
        return open_(path, *arguments)

    monkeypatch.setattr("ckptd.daemon.certs.os.open", full)
    with pytest.raises(AccessError, match=r"node-1\.pem: No space left on device; nothing was made"):
        made(tmp_path / "certs")
    assert opened == ["ca.pem", "node-0.pem", "node-0.key", "node-1.pem"]
    assert not (tmp_path / "certs").exists()


def test_the_cas_key_is_kept_only_on_request(directory: Path, tmp_path: Path) -> None:
    """Without it nobody can make more; with it, certificates are made for the nodes that have none yet, by the same CA."""
    assert not (directory / "ca.key").exists()
    kept = tmp_path / "kept"
    assert made(kept, NODES[:2], keep_ca_key=True) == Made(kept, NOW + 100 * DAY, (0, 1), ca_key=True)
    assert mode(kept / "ca.key") == 0o600
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    later = NOW + 60 * DAY
    assert made(kept, now=later) == Made(kept, NOW + 100 * DAY, (2, 3), ca_key=True)  # no longer than the CA
    assert before.items() <= {path.name: path.read_bytes() for path in kept.iterdir()}.items()
    for node, address in enumerate(NODES):
        assert load(kept, node, address, later).ca == before["ca.pem"]
    assert made(kept, now=later).nodes == ()


def test_a_set_is_not_made_longer_wrongly(tmp_path: Path) -> None:
    """Another host in the place of one that has a certificate, an expired CA, or a key of another CA: refused."""
    kept = made(tmp_path / "kept", keep_ca_key=True).directory
    with pytest.raises(
        AccessError, match=r"node-0\.pem was made for host0, node 0 is host9 now; remove it and .*node-0\.key"
    ):
        made(kept, ("host9:7700", *NODES[1:]))
    with pytest.raises(AccessError, match=r"ca\.pem has expired on 2027-03-04"):
        made(kept, (*NODES, "host4:7700"), now=NOW + 101 * DAY)
    other = made(tmp_path / "other", keep_ca_key=True).directory
    shutil.copy(other / "ca.key", kept / "ca.key")
    with pytest.raises(AccessError, match=r"ca\.key is not the key of .*ca\.pem; choose another directory"):
        made(kept, (*NODES, "host4:7700"))


@pytest.mark.parametrize(
    ("nodes", "days", "message"),
    [
        ((), 1, "expected host:port of every node"),
        (("a:1", "a:1"), 1, "each once"),
        (("a",), 1, "expected host:port"),
        (("a b:1",), 1, "no certificate can name this host"),
        (("ä:1",), 1, "no certificate can name this host"),
        (("*.example.org:1",), 1, "no certificate can name this host"),
        (("a" * 254 + ":1",), 1, "no certificate can name this host"),
        (("0.0.0.0:1",), 1, "expected the address that the other nodes connect to"),
        (("a:1",), 0, "--days 0: expected 1 to 3650"),
        (("a:1",), 3651, "--days 3651"),
    ],
)
def test_what_cannot_be_certified(tmp_path: Path, nodes: tuple[str, ...], days: int, message: str) -> None:
    """Addresses that no other node could connect to by name, and impossible terms, make nothing."""
    with pytest.raises(UsageError, match=message):
        made(tmp_path / "certs", nodes, days=days)
    assert not (tmp_path / "certs").exists()


# ---- loading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ca.pem", "node-1.pem", "node-1.key"])
def test_missing_and_damaged_files(directory: Path, name: str) -> None:
    """Each file that is not there, too long, or not what its name says is named with what to do."""
    path = directory / name
    content = path.read_bytes()
    for bad in (b"", b"nonsense", content[:-60], content[:60] + content[70:]):
        path.write_bytes(bad)
        with pytest.raises(AccessError, match=rf"{name} is no .* in PEM form.*; copy it again from where it was made"):
            load(directory, 1, NODES[1], NOW)
    path.write_bytes(b"x" * 70_000)
    with pytest.raises(AccessError, match=rf"{name} is longer than 65536 bytes"):
        load(directory, 1, NODES[1], NOW)
    path.unlink()
    with pytest.raises(
        AccessError, match=rf"{name}: No such file or directory; copy it from where `ckptd certs` made it"
    ):
        load(directory, 1, NODES[1], NOW)


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o644, 0o620])
def test_a_key_that_others_may_read(directory: Path, bits: int) -> None:
    """A key that is not its owner's alone is refused, with the mode and the remedy."""
    (directory / "node-1.key").chmod(bits)
    with pytest.raises(AccessError, match=rf"node-1\.key: others may read it \(mode {bits:o}\); chmod 600 it"):
        load(directory, 1, NODES[1], NOW)


def test_expired_and_not_yet_good(tmp_path: Path) -> None:
    """A past and a future certificate are refused with their dates; a clock that is a little slow does not matter."""
    past = made(tmp_path / "past", now=NOW - 101 * DAY).directory
    with pytest.raises(AccessError, match=r"ca\.pem has expired on 2026-11-23; make new ones with `ckptd certs`"):
        load(past, 1, NODES[1], NOW)
    future = made(tmp_path / "future", now=NOW + timedelta(hours=23)).directory
    assert load(future, 1, NODES[1], NOW).until == NOW + timedelta(hours=23) + 100 * DAY
    with pytest.raises(
        AccessError, match="is good from 2026-11-24 on, here it is 2026-11-22; set this machine's clock"
    ):
        load(future, 1, NODES[1], NOW - 2 * DAY)


def test_a_certificate_that_ends_before_its_ca(tmp_path: Path) -> None:
    """The earlier end counts, and the file that has ended is the one that is named."""
    kept = made(tmp_path / "kept", NODES[:1], keep_ca_key=True).directory
    made(kept, NODES[:2], days=10)
    assert load(kept, 1, NODES[1], NOW).days_left(NOW) == 10
    with pytest.raises(AccessError, match=r"node-1\.pem has expired on 2026-12-04"):
        load(kept, 1, NODES[1], NOW + 11 * DAY)


def test_files_of_two_sets(directory: Path, tmp_path: Path) -> None:
    """Another CA, another node's key: whatever does not belong together is refused by name."""
    other = made(tmp_path / "other").directory
    shutil.copy(other / "ca.pem", tmp_path / "ca.pem")
    for name in ("node-1.pem", "node-1.key"):
        shutil.copy(directory / name, tmp_path / name)
    with pytest.raises(
        AccessError, match=r"node-1\.pem was not issued by .*ca\.pem; all nodes need the files of one run"
    ):
        load(tmp_path, 1, NODES[1], NOW)
    shutil.copy(directory / "node-0.key", directory / "node-1.key")
    with pytest.raises(AccessError, match=r"node-1\.key is not the key of .*node-1\.pem"):
        load(directory, 1, NODES[1], NOW)


@pytest.mark.parametrize("address", ["host1:7700", "10.0.0.3:7700", "[fd00::3]:1"])
def test_a_certificate_of_another_host(directory: Path, address: str) -> None:
    """A certificate that does not name this node's address is refused: its peers would refuse it later, one by one."""
    with pytest.raises(
        AccessError, match=r"node-1\.pem was made for 10\.0\.0\.2, this node's address is .*; correct --nodes"
    ):
        load(directory, 1, address, NOW)


def test_hosts_are_compared_as_names() -> None:
    """Case, brackets and the way an IPv6 address is written make no difference."""
    assert host_of("Node-A.Example:1") == "node-a.example"
    assert host_of("[FD00:0:0::3]:1") == host_of("[fd00::3]:2") == "fd00::3"
    assert host_of("127.0.0.1:1") == "127.0.0.1"


# ---- the command line and the doctor ------------------------------------------------------------


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Any]:
    """Run `ckptd certs` in this process: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CKPTD_NODES", raising=False)
    monkeypatch.delenv("CKPTD_TLS_DIR", raising=False)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ckptd", "certs", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            cli.main()
        assert done.value.code is None or isinstance(done.value.code, int)
        return done.value.code or 0, *capsys.readouterr()

    return call


def test_the_command_says_what_to_copy_where(run: Callable[..., Any]) -> None:
    """People get a table and the next steps; programs get JSON; a second run is refused."""
    code, out, _ = run("certs", "--nodes", "host0:7700,host1:7700")
    assert code == 0
    assert all(
        word in out
        for word in ("host1:7700", "ca.pem  node-1.pem  node-1.key", "--tls-dir", "The CA's key was not kept")
    )
    code, _, err = run("certs", "--nodes", "host0:7700,host1:7700")
    assert (code, "nothing is overwritten" in err) == (1, True)
    code, out, _ = run("more", "--nodes", "host0:7700", "--days", "3", "--keep-ca-key", "--json")
    content = json.loads(out)
    assert content["nodes"] == [{"node": 0, "address": "host0:7700", "files": ["ca.pem", "node-0.pem", "node-0.key"]}]
    assert (code, content["directory"], content["ca_key"]) == (0, "more", True)
    code, out, _ = run("more", "--nodes", "host0:7700,host1:7700")
    assert (code, "keep it away from the nodes" in out) == (0, True)
    assert "Nothing to make" in run("more", "--nodes", "host0:7700,host1:7700")[1]


def test_the_command_wants_nodes(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """They come from the option, or from where `ckptd serve` has them; without any it is wrong usage."""
    code, _, err = run("certs")
    assert (code, "--nodes is missing" in err) == (2, True)
    monkeypatch.setenv("CKPTD_NODES", "host0:7700,host1:7700")
    assert run("certs")[0] == 0
    assert Path("certs/node-1.key").exists()
