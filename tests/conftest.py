"""What holds for all tests: property tests are not timed, as the machine may be busy. And what several folders share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
from fsspec.registry import _registry
from hypothesis import HealthCheck, settings

settings.register_profile("busy", max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Every test leaves the environment as it was: else a Trainer joins the group that Lightning described."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture
def without_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither s3fs nor gcsfs is installed, also where an earlier test has had fsspec load them."""
    for module, protocol in (("s3fs", "s3"), ("gcsfs", "gs")):
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.delitem(_registry, protocol, raising=False)
