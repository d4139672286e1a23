"""What names a checkpoint and what describes it: ids, and DCP's metadata in an image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fakes import FakeChannel

import ckptd.dcp
from ckptd.ckpt.errors import CorruptionError, StateError, UsageError
from ckptd.ckpt.image import parse
from ckptd.ckpt.model import Version
from ckptd.dcp import StorageReader, StorageWriter
from ckptd.integrations.dcp.metadata import DOCUMENT, decode
from ckptd.integrations.dcp.names import Address, address_of, name_of
from ckptd.integrations.images import open_images

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture
def channel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeChannel:
    monkeypatch.setenv("CKPTD_JOB", "job")
    return FakeChannel(tmp_path)


def save(channel: FakeChannel, what: dict[str, Any], step: int) -> None:
    ckptd.dcp.save(what, storage_writer=StorageWriter(step, channel=channel), no_dist=True)


@pytest.mark.parametrize(
    "bad", ["..", "ckptd://job/../other/step-1", "/data/step-1", "step-", "step--1", "-1", "ckptd://", "ckptd://a b/step-1",
            "ckptd://job/step-1/..", "step-1\n", "step-\u0661", "1" * 19, "best"],
)  # fmt: skip
def test_ids_that_name_no_step_are_refused(bad: str) -> None:
    """An id is never a path, and never guessed at."""
    with pytest.raises(UsageError, match="expected a step"):
        StorageReader(bad)
    assert not StorageWriter.validate_checkpoint_id(bad)


@pytest.mark.parametrize("bad", [True, 1.5, -1, ["step-1"]])
def test_ids_of_other_types_are_refused(bad: Any) -> None:
    """Nothing is converted."""
    with pytest.raises(UsageError, match="expected a step"):
        address_of(bad)


def test_ids_name_steps() -> None:
    """All ways to say it, and the exact name of a version."""
    assert address_of(12) == address_of("12") == address_of("step-12") == Address(None, 12)
    assert address_of("ckptd://gpt/step-12") == Address("gpt", 12)
    assert address_of("ckptd://gpt") == Address("gpt")
    assert address_of(None) == Address()
    assert address_of(name_of(Version(3, 12))) == Address(None, 12, 3)


# ---- metadata that is damaged or hostile --------------------------------------------------------------------


GOOD = {
    "format": 1,
    "torch": None,
    "tensors": {"a": [[0]]},
    "objects": {"n": [0, 0, 4]},
    "paths": {"a": ["a"], "n": ["n"]},
}


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2}, {"torch": 5}, {"tensors": []}, {"tensors": {"a": []}}, {"tensors": {"a": [[1]]}},
        {"tensors": {"a": [[-1]]}}, {"tensors": {"a": [[0, "b"]]}}, {"tensors": {"a": [[0], [0]]}},
        {"tensors": {"a": [[0, "a", 1]]}}, {"tensors": {"b": [[0]]}}, {"tensors": {"a": [[True]]}}, {"tensors": {"a": 7}},
        {"objects": {"a": [0, 0, 1]}}, {"objects": {"n": [0, 0, 10_000]}}, {"objects": {"n": [0, 3, 2]}},
        {"objects": {"n": [3, 0, 1]}}, {"objects": {"n": [0, 0]}}, {"paths": []}, {"paths": {"a": [1.5]}},
        {"paths": {"a": "a"}}, {"more": 1},
    ],
    ids=json.dumps,
)  # fmt: skip
def test_metadata_that_disagrees_with_the_images_is_refused(channel: FakeChannel, change: dict[str, Any]) -> None:
    """Each rank, name, entry and byte of it is held against what is there."""
    save(channel, {"a": torch.ones(4), "n": 5}, 1)
    version = Version(1, 1)
    images = open_images(channel.gather(version), version, "job", 1)
    decode(json.dumps(GOOD).encode(), images)
    with pytest.raises(CorruptionError):
        decode(json.dumps(GOOD | change).encode(), images)


def test_metadata_has_a_bound(channel: FakeChannel, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is made and when it is read."""
    save(channel, {"a": torch.ones(4)}, 1)
    version = Version(1, 1)
    images = open_images(channel.gather(version), version, "job", 1)
    monkeypatch.setattr("ckptd.integrations.dcp.metadata.MAX_DOCUMENT", 60)
    with pytest.raises(StateError, match="it may have 60"):
        save(channel, {"a": torch.ones(4)}, 2)
    with pytest.raises(CorruptionError, match="at most 60"):
        decode(b"{}".ljust(10_000), images)


def test_metadata_is_json_in_the_image(channel: FakeChannel) -> None:
    """No pickle; and its name and place are those of docs/formats.md."""
    save(channel, {"a": torch.ones(4), "n": 5}, 1)
    image = channel.image(Version(1, 1)).read_bytes()
    first, last = parse(image).spans[DOCUMENT]
    document = json.loads(image[first:last])
    assert document["tensors"] == {"a": [[0]]}
    assert document["paths"] == {"a": ["a"], "n": ["n"]}
