"""The manifest: what is written is read, and a damaged or hostile one is refused by the name of its directory."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.values import images_of, json_values

from ckptd.ckpt import manifest
from ckptd.ckpt.errors import CorruptionError
from ckptd.ckpt.manifest import Manifest
from ckptd.ckpt.model import Image, Version

DIGEST = "0123456789abcdef" * 2
NAME = "step-000000000012.e0002"
stored_versions = st.builds(Version, st.integers(0, 10**12 - 1), st.integers(0, 10**12 - 1))
manifests = st.builds(
    Manifest,
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
    stored_versions,
    st.integers(1, 5).flatmap(lambda world: st.tuples(*(images_of(rank) for rank in range(world)))),
)


def content(**changes: Any) -> dict[str, Any]:
    """A good manifest of `NAME`, with some of its fields changed."""
    return {"format": 1, "job": "j", "epoch": 2, "step": 12, "files": [file()]} | changes


def file(**changes: Any) -> dict[str, Any]:
    return {"name": "rank-00000.safetensors", "rank": 0, "size": 100, "xxh3_128": DIGEST} | changes


@given(manifests)
def test_a_manifest_survives(made: Manifest) -> None:
    """Every manifest comes back equal, and its directory's name stands for its version."""
    name = manifest.dir_name(made.version)
    assert manifest.decode(manifest.encode(made), name) == made
    assert manifest.version_of(name) == made.version
    assert made.world == len(made.images)


@pytest.mark.parametrize(
    "name",
    [
        "step-12.e0002",
        "step-000000000012",
        f".writing-{NAME}",
        f"{NAME}.tmp",
        "step-00000000001².e0002",
        "manifest.json",
        "",
    ],
)
def test_other_names_are_no_versions(name: str) -> None:
    """Only a whole, plain name stands for a version."""
    assert manifest.version_of(name) is None


def test_a_good_manifest() -> None:
    """The example that the hostile ones below are made from is fine."""
    good = manifest.decode(json.dumps(content()).encode(), NAME)
    assert good == Manifest("j", Version(2, 12), (Image(0, 100, DIGEST),))


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        b'{"format": 1',
        b"[" * 100_000,
        b'{"format": ' + b"9" * 10_000 + b"}",
        json.dumps(content()).encode()[:-1],
        json.dumps(content()).replace('"step": 12', '"step": 13, "step": 12').encode(),
    ],
    ids=lambda data: repr(data[:20]),
)
def test_bytes_that_are_no_manifest(bad: bytes) -> None:
    """Empty, torn, foreign, endlessly nested or ambiguous bytes are refused by the directory's name."""
    with pytest.raises(CorruptionError, match=NAME):
        manifest.decode(bad, NAME)


@pytest.mark.parametrize(
    "bad",
    [
        content(format=2),
        content(format=True),
        content(format="1"),
        content(job=None),
        content(job=""),
        content(job="../other"),
        content(files=None),
        content(files=[]),
        content(files={}),
        content(files=[None]),
        content(files=[file(rank=1)]),
        content(files=[file(rank=True)]),
        content(files=[file(), file()]),
        content(files=[file(name="../../etc/passwd")]),
        content(files=[file(name=None)]),
        content(files=[file(size=-1)]),
        content(files=[file(size=2**46)]),
        content(files=[file(size="100")]),
        content(files=[file(xxh3_128="")]),
        content(files=[file(xxh3_128=None)]),
        content(step=13),
        content(step=-1),
        content(step=12.0),
        content(epoch=None),
        content(epoch=2**53),
    ],
)
def test_a_bad_manifest_is_refused_by_name(bad: Any) -> None:
    """A missing, mistyped or impossible value makes the whole manifest invalid; the message names the directory."""
    with pytest.raises(CorruptionError, match=NAME):
        manifest.decode(json.dumps(bad).encode(), NAME)


@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_manifest_or_corruption(data: bytes) -> None:
    """Whatever a file holds, reading it ends in a manifest or in CorruptionError."""
    with contextlib.suppress(CorruptionError):
        manifest.decode(data, NAME)


@given(st.data())
def test_one_wrong_field_is_never_fatal(data: st.DataObject) -> None:
    """A good manifest with any one of its parts replaced by any JSON is read or refused in the same two ways."""
    bad = content()
    where: dict[str, Any] = data.draw(st.sampled_from([bad, bad["files"][0]]))
    where[data.draw(st.sampled_from(sorted(where)))] = data.draw(json_values)
    with contextlib.suppress(CorruptionError):
        manifest.decode(json.dumps(bad).encode(), NAME)
