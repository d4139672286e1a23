"""One S3 server for all tests of a module, and a gate and a bucket for each."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator

import fsspec
import pytest
from aiobotocore.session import AioSession
from tests.objects.s3 import KEYS, Gate, Server, served

# gcsfs reads it when it is imported: else it asks Google about each bucket by ways that lead past the server of the tests.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with served() as made:
        yield made


@pytest.fixture(scope="session")
def session() -> AioSession:
    """What botocore reads of S3, read once: each client of a session of its own takes a tenth of a second for it."""
    return AioSession()


@pytest.fixture
def gate(server: Server, session: AioSession, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """The environment leads to the gate."""
    monkeypatch.setitem(fsspec.config.conf, "s3", {"session": session})
    with contextlib.closing(Gate(server)) as made:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": made.url}.items():
            monkeypatch.setenv(name, value)
        yield made


@pytest.fixture
def url(server: Server) -> str:
    """The URL of a prefix in a new bucket."""
    name = f"bucket-{secrets.token_hex(4)}"
    server.make_bucket(name)
    return f"s3://{name}/some/prefix"
