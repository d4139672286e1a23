"""Persisting: images go to storage as they were captured, and trouble there is a reason, never an end of the daemon."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.daemon_edges.nodes import NodesHere, nodes_here
from tests.payload import bytes_of, flip

from ckptd.ckpt.client import Stretch
from ckptd.ckpt.errors import CorruptionError, Unrecoverable
from ckptd.ckpt.model import PIECE, Table, Version
from ckptd.daemon import events as ev

V = Version(1, 5)
SIZES = [PIECE + 77, 9 * 1024 * 1024]


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[NodesHere]:
    with nodes_here(2, 1, tmp_path) as made:
        yield made


def write(nodes: NodesHere, table: Table) -> list[ev.Written]:
    """What every node does when it is asked to persist."""
    done = []
    for node, payload in zip(nodes.nodes, table.payloads, strict=True):
        slots = tuple((image, node.slot) for image in payload.images)
        done.append(node.jobs.write(ev.Write(table.version, table.world, slots)))
    return done


def forget(nodes: NodesHere) -> None:
    for node in nodes.nodes:
        node.segments.drop(node.slot)


def test_persisted_and_restored(nodes: NodesHere) -> None:
    """Written by each node and published by one, a step comes back bit-exact when no memory holds it."""
    table = nodes.capture(V, SIZES)
    assert write(nodes, table) == [ev.Written(V, payload.images) for payload in table.payloads]
    assert nodes[0].jobs.stored() == []
    for _ in range(2):
        published = nodes[0].jobs.publish(ev.Publish(table))
        assert (published.version, published.reason) == (V, "")
        (kept,) = published.stored
        assert kept.version == V
        assert kept.age_s is not None
        assert -1.0 < kept.age_s < 60.0
    assert [step.stored.version for step in nodes[1].jobs.stored()] == [V]
    forget(nodes)
    found = nodes[1].jobs.gather(nodes.ledger(), V)
    assert [item.source for item in found] == ["storage", "storage"]
    assert [item.path.read_bytes() for item in found] == [bytes_of(V, rank, size) for rank, size in enumerate(SIZES)]


def test_what_need_not_be_kept_is_removed(nodes: NodesHere, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step is offered no more, and nothing of it is left; a storage that fails is a reason; twice is harmless."""
    table = nodes.capture(V, SIZES)
    write(nodes, table)
    nodes[0].jobs.publish(ev.Publish(table))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(errno.EROFS, os.strerror(errno.EROFS))))
        assert "Read-only file system" in nodes[1].jobs.remove(ev.Remove(V)).reason
    assert len(nodes[1].jobs.stored()) == 1
    for _ in range(2):
        assert nodes[1].jobs.remove(ev.Remove(V)) == ev.Removed(V)
    assert nodes[0].jobs.stored() == []
    storage = nodes[0].jobs._storage
    assert storage is not None
    assert not list(Path(storage.where).iterdir())


def test_a_node_that_lives_does_not_hinder_storage(nodes: NodesHere) -> None:
    """When one node still holds its part but the rest of the version is lost, storage gives the whole of it."""
    table = nodes.capture(V, SIZES)
    write(nodes, table)
    nodes[0].jobs.publish(ev.Publish(table))
    nodes[1].segments.drop(nodes[1].slot)
    assert [item.source for item in nodes[0].jobs.gather(nodes.ledger(1), V)] == ["storage", "storage"]


def test_damaged_bytes_are_not_persisted(nodes: NodesHere) -> None:
    """An image that no longer checks is not written: the reason comes back, and the damage is told."""
    table = nodes.capture(V, SIZES)
    flip(nodes[1].segments.file_for(nodes[1].slot, SIZES[1]), 5 * PIECE)
    good, bad = write(nodes, table)
    assert not good.reason
    assert (bad.images, bad.reason) == (
        (),
        "rank 1 of step 5 (epoch 1): the slot's bytes no longer match their checksum",
    )
    assert nodes[1].damage == [ev.Damaged(nodes[1].slot, V, (5,))]
    assert "has None bytes" in nodes[0].jobs.publish(ev.Publish(table)).reason
    assert nodes[0].jobs.stored() == []


def test_an_image_that_is_gone(nodes: NodesHere) -> None:
    """A slot that was given up before it was written is a reason too."""
    table = nodes.capture(V, SIZES)
    forget(nodes)
    assert [done.reason for done in write(nodes, table)] == [
        f"rank {rank} of step 5 (epoch 1) is no longer held" for rank in (0, 1)
    ]


def test_a_full_storage(nodes: NodesHere, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the first or the last block does not fit, the reason comes back, nothing is offered, and later it works."""
    table = nodes.capture(V, SIZES)
    nodes[1].segments.drop(nodes[1].slot)
    real = os.write
    image = nodes[1].capture(V, 8 * 1024 * 1024 + 100)  # the last block is a padded one of its own
    for limit in (0, 8 * 1024 * 1024):
        written = [0]

        def tight(descriptor: int, data: memoryview, limit: int = limit, written: list[int] = written) -> int:
            if written[0] + len(data) > limit:
                raise OSError(errno.ENOSPC, "No space left on device")
            written[0] += len(data)
            return real(descriptor, data)

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", tight)
            event = nodes[1].jobs.write(ev.Write(V, 2, ((image, nodes[1].slot),)))
        assert event.images == ()
        assert "No space left on device; check space and permissions" in event.reason
    assert nodes[1].jobs.write(ev.Write(V, 2, ((image, nodes[1].slot),))) == ev.Written(V, (image,))
    assert "has None bytes" in nodes[0].jobs.publish(ev.Publish(table)).reason


def test_verify_names_what_is_wrong_on_storage(nodes: NodesHere) -> None:
    """Every file is checked; a damaged one and a bad manifest are rows of their own that are not ok."""
    for version in (V, Version(1, 6)):
        table = nodes.capture(version, SIZES)
        write(nodes, table)
        nodes[0].jobs.publish(ev.Publish(table))
    assert all(row["ok"] for row in nodes[0].jobs.verify())
    newest, older = nodes[0].jobs.stored()
    flip(older.path / "rank-00001.safetensors", 8_999_999)
    (newest.path / "manifest.json").write_text("{")
    bad = [row for row in nodes[0].jobs.verify() if not row["ok"]]
    assert len(bad) == 2
    assert newest.path.name in str(bad[0]["reason"])
    assert (bad[1]["what"], bad[1]["step"]) == ("rank 1", 5)
    assert "rank-00001.safetensors does not match its manifest" in str(bad[1]["reason"])
    forget(nodes)
    with pytest.raises(CorruptionError, match="rank-00001"):
        nodes[0].jobs.gather(nodes.ledger(), V)


def test_a_restore_that_finds_storage_spoiled_says_which_version(nodes: NodesHere) -> None:
    """Whether all of it is brought or its damaged part; not as long as memory has it, nor for the parts that are well."""
    table = nodes.capture(V, SIZES)
    write(nodes, table)
    nodes[0].jobs.publish(ev.Publish(table))
    (step,) = nodes[0].jobs.stored()
    flip(step.path / "rank-00001.safetensors", 8_999_999)
    said: list[tuple[Version, str]] = []
    nodes[0].jobs.on_spoiled = lambda version, reason: said.append((version, reason))
    nodes[0].jobs.gather(nodes.ledger(), V)
    assert said == []
    forget(nodes)
    with pytest.raises(CorruptionError):
        nodes[0].jobs.gather(nodes.ledger(), V)
    opened = nodes[0].jobs.open(nodes.ledger(), V)
    assert opened.bring([Stretch(1, 0, 1)]).sources == ("storage",)
    assert len(said) == 1
    with pytest.raises(Unrecoverable):
        opened.bring([Stretch(1, 8_999_999, 9_000_000)])
    assert [version for version, _ in said] == [V, V]
    assert "rank-00001.safetensors does not match its manifest" in said[0][1]


def test_verify_during_training_gives_no_false_alarm(nodes: NodesHere, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot that is filled again while it is checked is nobody's damage and no row."""
    nodes.capture(V, SIZES)
    entries = nodes[0].segments.slot_entries()
    nodes[0].segments.drop(nodes[0].slot)
    flip(nodes[0].segments.file_for(nodes[0].slot, SIZES[0]))
    monkeypatch.setattr(nodes[0].segments, "slot_entries", lambda: entries)
    assert nodes[0].jobs.verify() == []
    assert nodes[0].damage == []


def test_a_storage_that_goes_away(nodes: NodesHere, tmp_path: Path) -> None:
    """With the root gone, writing and publishing say so, and nothing is stored."""
    table = nodes.capture(V, SIZES)
    shutil.rmtree(tmp_path / "storage", ignore_errors=True)
    (tmp_path / "storage").touch()
    assert all("cannot make" in done.reason for done in write(nodes, table))
    assert nodes[0].jobs.publish(ev.Publish(table)).reason
    assert nodes[0].jobs.stored() == []
