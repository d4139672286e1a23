"""How `ckptd run` ends when its round never comes."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from torch.distributed.elastic.rendezvous.api import RendezvousTimeoutError

from ckptd.integrations import launch


def test_a_job_whose_nodes_do_not_come_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is missing, and no traceback around it; the code does not forbid a scheduler to try again."""
    why = "no round within 4 s (--rdzv-conf join_timeout): still waiting for at least 2 agents, 1 have come"

    def wait_in_vain(*_: object) -> None:
        raise RendezvousTimeoutError(why)

    monkeypatch.setattr(launch, "_daemon", lambda settings: nullcontext())
    monkeypatch.setattr(launch, "_launch", wait_in_vain)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert launch.main(["train.py"]) == 1
    assert capsys.readouterr().err == f"ckptd: {why}\n"
