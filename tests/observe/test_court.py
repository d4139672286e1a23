"""The collector's court: sightings in, incidents out, whatever single nodes say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ckptd.ckpt.sighting import Decided, Group, Sighting, Stamps
from ckptd.daemon.observe.bailiff import Scene
from ckptd.daemon.observe.court import QUIET_S, Court
from ckptd.daemon.observe.incidents import Incidents
from ckptd.daemon.watch.observations import GroupProgress, Phase, Process, RankDigest, pack

WORLD = (Group(5, ((0, 1, 2),)),)


class Job:
    """Two ranks on two nodes, whose sightings a court hears once a second."""

    def __init__(self, folder: Path) -> None:
        self.court = Court(Incidents(folder / "incidents"))
        self.urgent: list[float] = []
        self.court.on_urgent = lambda: self.urgent.append(self.now)
        self.now, self.epoch = 1000.0, 1
        self.decided: Decided | None = None
        self.digests = [RankDigest(rank) for rank in range(2)]
        self.answers: dict[int, Any] = {}
        self.scene = Scene()

    def train(
        self, seconds: int, *, moving: Sequence[int] = (0, 1), speaking: Sequence[int] = (0, 1), step_s: float = 0.2
    ) -> None:
        """So many seconds of five steps each, which say that they took `step_s`."""
        for _ in range(seconds):
            self.now += 1.0
            for rank in moving:
                old = self.digests[rank]
                step = old.step + 5
                self.digests[rank] = replace(old, step=step, step_s=step_s, groups=(GroupProgress(5, step, step, 1),))
            self.say(speaking)

    def say(self, speaking: Sequence[int] = (0, 1), **changes: Any) -> None:
        self.say_as({node: node for node in speaking}, **changes)

    def say_as(self, rank_of: Mapping[int, int], **changes: Any) -> None:
        """These nodes speak, each of the rank that it has."""
        for node, rank in rank_of.items():
            answer = self.answers.get(node)
            digest = replace(self.digests[rank], epoch=self.epoch)
            seen = Sighting(
                node=node, boot="b", epoch=self.epoch, world=2, at=self.now, digests=pack([digest]).tobytes(), groups=WORLD,
                stamps=Stamps(answer.at, self.now - 0.01, self.now) if answer else None, decided=self.decided, **changes,
            )  # fmt: skip
            self.answers[node] = self.court.hear(seen, self.now)
        self.court.sit(self.now, self.scene)

    def set(self, rank: int, **changes: Any) -> None:
        self.digests[rank] = replace(self.digests[rank], **changes)

    @property
    def incidents(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.court.recorded(0)["incidents"]
        return found


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_a_healthy_job_has_no_incident(job: Job) -> None:
    """Neither while it trains nor while one rank evaluates for minutes."""
    job.train(20)
    job.set(1, phase=Phase.EVALUATION)
    step = job.digests[0].step
    job.set(0, groups=(GroupProgress(5, step + 1, step, 1),))
    job.train(120, moving=())
    assert job.incidents == []
    assert job.court.suspicions() == []


def test_a_hang_is_recorded_with_its_culprit_and_its_stack(job: Job) -> None:
    """One incident, however long it lasts; the stack is asked for once and kept."""
    job.train(10)
    step = job.digests[0].step
    job.set(0, groups=(GroupProgress(5, step + 1, step, 1),))
    job.train(12, moving=())
    assert [item["verdict"]["suspects"]["ranks"] for item in job.incidents] == [[1]]
    times = job.incidents[0]["times"]
    assert 5.0 < times["t_detected"] - times["t_fault"] < 8.0
    assert 1 in job.answers[1].explain or any(job.court._wanted_stacks.get(1, []))
    job.say(stacks=((1, "in train.py"),))
    job.say(stacks=((1, "in train.py"),))
    entries = job.court.recorded(1)["entries"]
    assert [entry["text"] for entry in entries if entry["event"] == "stack"] == ["in train.py"]
    assert job.court.suspicions()[0]["incident"] == 1


def test_a_verdict_that_is_not_repeated_is_over(job: Job) -> None:
    """A hang that ends by itself leaves a closed record."""
    job.train(10)
    step = job.digests[0].step
    job.set(0, groups=(GroupProgress(5, step + 1, step, 1),))
    job.train(10, moving=())
    job.train(int(QUIET_S) + 3)
    assert [item["open"] for item in job.incidents] == [False]
    assert job.court.suspicions() == []


def test_a_death_wakes_the_court_and_the_next_life_is_noted(job: Job) -> None:
    """Word of it comes at once; later the chosen step, its tier, the lost steps and the first step are in the record."""
    job.train(10)
    job.set(1, process=Process.GONE, exit=-9)
    job.say()
    job.train(1, moving=())
    assert job.urgent
    assert job.incidents[0]["verdict"]["class"] == "crash"
    reached = job.digests[0].step
    job.epoch, job.decided = 2, Decided(2, reached - 3, "parity")
    job.digests = [RankDigest(rank, step=reached - 3, phase=Phase.START) for rank in range(2)]
    job.train(2, moving=())
    assert job.incidents[0]["chosen"] == {"epoch": 2, "step": reached - 3, "tier": "parity"}
    assert job.incidents[0]["lost_steps"] == 3
    job.train(2)
    found = job.incidents[0]
    assert not found["open"]
    assert set(found["times"]) == {"t_fault", "t_detected", "t_isolated", "t_state_ready", "t_first_step"}


def test_a_node_that_speaks_nonsense_or_floods_changes_nothing(job: Job) -> None:
    """Digests that are none, ranks of others, and a thousand letters: remarked, and the job is judged as before."""
    job.train(10)
    for _ in range(1000):
        job.court.hear(Sighting(node=1, boot="b", epoch=1, world=2, at=job.now, digests=b"x" * 77), job.now)
    stolen = pack([RankDigest(0, process=Process.GONE, exit=-9)]).tobytes()
    job.court.hear(Sighting(node=1, boot="b", epoch=1, world=2, at=job.now, digests=stolen, groups=WORLD), job.now)
    job.train(10)
    assert job.incidents == []
    assert any("node 1" in text for text in job.court.remarks())


def test_who_is_not_the_collector_any_more_forgets(job: Job) -> None:
    """A court that sits again has heard nobody, and grants everybody the time of a hang anew."""
    job.train(10)
    job.court.adjourn()
    job.train(4, moving=())
    assert job.incidents == []
