"""The site's health checker: its word counts, its silence and its nonsense say nothing about the node."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.cluster import until

from ckptd.daemon.observe.health import ANSWER_MAX, QUESTION, HealthProbe
from ckptd.daemon.observe.plugins import Finding, Plugins

NOBODY = 65534


@contextmanager
def checker(path: Path, answer: bytes | None, uid: int | None = None) -> Iterator[list[bytes]]:
    """A checker of the site's, of another user if that is said, that answers so (None: never); yields what it was asked."""
    asked: list[bytes] = []
    over = threading.Event()
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    if uid is not None:
        os.seteuid(uid)
    try:
        server.listen()
    finally:
        if uid is not None:
            os.seteuid(0)

    def serve() -> None:
        while True:
            try:
                asker, _ = server.accept()
            except OSError:
                return
            with asker:
                asked.append(asker.makefile("rb").readline())
                if answer is None:
                    over.wait(30.0)
                else:
                    try:
                        asker.sendall(answer)
                    except OSError:  # it was not listened to the end
                        continue

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield asked
    finally:
        over.set()
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(10.0)


def test_the_checker_s_word_is_taken(tmp_path: Path) -> None:
    """It is asked one line, and answers one; what it says besides does not matter."""
    with checker(tmp_path / "well", b'{"ok": true, "reason": "", "uptime": 7}\n') as asked:
        assert HealthProbe(tmp_path / "well").look() == Finding(here=True)
        assert asked == [QUESTION]
    with checker(tmp_path / "sick", b'{"ok": false, "reason": "GPU 3:\\u001b[31m row remap"}\n'):
        assert HealthProbe(tmp_path / "sick").look() == Finding(here=True, sick="GPU 3: [31m row remap")
    with checker(tmp_path / "curt", b'{"ok": false}'):
        assert HealthProbe(tmp_path / "curt").look().sick == "it gives no reason"


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"\n", b"sick\n", b"[]\n", b'{"ok": 0}\n', b'{"reason": "x"}\n', b'{"ok": false, "reason": 3}\n', b"\xff\n",
        b'{"ok": false, "ok": false}\n', b'{"ok": false, "reason": "' + b"x" * ANSWER_MAX, b"[" * 4000 + b"\n",
    ],
    ids=range(11),
)  # fmt: skip
def test_nonsense_is_no_word_about_the_node(tmp_path: Path, answer: bytes) -> None:
    with checker(tmp_path / "s", answer):
        found = HealthProbe(tmp_path / "s").look()
    assert found.here
    assert not found.sick
    assert [text[:13] for text in found.wrong] == ["the checker a"]
    assert "does not answer" in found.wrong[0]


def test_a_checker_that_is_slow_or_absent_is_not_waited_for(tmp_path: Path) -> None:
    with checker(tmp_path / "s", None):
        found = HealthProbe(tmp_path / "s", answer_s=0.05).look()
    assert not found.sick
    assert "does not answer" in found.wrong[0]
    assert "No such file" in HealthProbe(tmp_path / "none").look().wrong[0]


def test_only_root_and_ourselves_are_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's checker could keep nodes out."""
    ours = os.getuid()
    if ours != 0:
        monkeypatch.setattr(os, "getuid", lambda: ours + 1)
    with checker(tmp_path / "s", b'{"ok": false, "reason": "no"}\n', NOBODY if ours == 0 else None) as asked:
        found = HealthProbe(tmp_path / "s").look()
        assert not found.sick
        assert f"user {NOBODY if ours == 0 else ours} listens there; expected root" in found.wrong[0]
        assert asked in ([], [b""])


def test_a_sick_node_is_heard_by_the_judge_and_a_silent_checker_is_a_remark(tmp_path: Path) -> None:
    with checker(tmp_path / "s", b'{"ok": false, "reason": "ECC"}\n'):
        plugins = Plugins([HealthProbe(tmp_path / "s")])
        try:
            assert until(plugins.sick, "its word") == "health: ECC"
            assert plugins.findings() == []
        finally:
            plugins.close()
    plugins = Plugins([HealthProbe(tmp_path / "none")])
    try:
        assert "does not answer" in until(plugins.findings, "its silence")[0]
        assert plugins.sick() == ""
    finally:
        plugins.close()
