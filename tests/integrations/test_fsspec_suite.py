"""fsspec's own tests of a file system, in a step of a job without a daemon."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fsspec.tests.abstract import AbstractFixtures
from fsspec.tests.abstract.copy import AbstractCopyTests
from fsspec.tests.abstract.get import AbstractGetTests
from fsspec.tests.abstract.open import AbstractOpenTests
from fsspec.tests.abstract.pipe import AbstractPipeTests
from fsspec.tests.abstract.put import AbstractPutTests
from tests.fakes import FakeChannel

from ckptd.ckpt.client import Decision, Slot
from ckptd.ckpt.model import Version
from ckptd.integrations.dcp.life import Life
from ckptd.integrations.files import saving
from ckptd.integrations.filesystem import CkptdFileSystem


class Newest(FakeChannel):
    """Keeps one version, as a node whose slots are needed, and remembers which."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._epochs, self._versions = 0, list[Version]()

    def decide(self, *, world: int, fresh: bool = False) -> Decision:
        self._epochs += 1
        return Decision(self._epochs, None, "none", "a save")

    def newest_epoch(self) -> int:
        return self._epochs

    def commit(self, slot: Slot, version: Version) -> None:
        super().commit(slot, version)
        for older in self._versions:
            shutil.rmtree(self.image(older).parent)
        self._versions = [version]

    def recorded(self) -> list[Version]:
        return self._versions


class InAStep(AbstractFixtures):  # type: ignore[misc]  # fsspec has no types
    """Paths below a step are those of any file system; only empty directories are not kept."""

    @pytest.fixture
    def fs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CkptdFileSystem]:
        monkeypatch.setenv("CKPTD_JOB", "job")
        (tmp_path / "channel").mkdir()
        life = Life(Newest(tmp_path / "channel"), "job")
        monkeypatch.setattr("ckptd.integrations.filesystem.running", lambda job: life)
        monkeypatch.setattr("ckptd.integrations.files.saving.life_of", lambda job: life)
        monkeypatch.setattr(saving, "_savings", {})
        return CkptdFileSystem(skip_instance_cache=True)

    @pytest.fixture
    def fs_path(self) -> str:
        return "job/step-5"

    @pytest.fixture
    def fs_join(self) -> Callable[..., str]:
        return lambda *parts: "/".join(parts)

    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return False


class TestCopy(AbstractCopyTests, InAStep): ...  # type: ignore[misc]


class TestGet(AbstractGetTests, InAStep): ...  # type: ignore[misc]


class TestPut(AbstractPutTests, InAStep): ...  # type: ignore[misc]


class TestOpen(AbstractOpenTests, InAStep): ...  # type: ignore[misc]


class TestPipe(AbstractPipeTests, InAStep): ...  # type: ignore[misc]
