"""What holds for all tests: property tests are not timed, as the machine may be busy. And what several folders share."""

from __future__ import annotations

import sys

import pytest
from fsspec.registry import _registry
from hypothesis import HealthCheck, settings

settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


@pytest.fixture
def without_s3fs(monkeypatch: pytest.MonkeyPatch) -> None:
    """s3fs is not installed, also where an earlier test has had fsspec load it."""
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(_registry, "s3", raising=False)
