"""torch.distributed.checkpoint on the memory tier; public as `ckptd.dcp`. See docs/dcp.md."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlanner as BaseLoadPlanner
from torch.distributed.checkpoint.planner import SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.checkpoint.state_dict_saver import async_save as dcp_async_save
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from ckptd.ckpt.errors import CkptdError, Unrecoverable
from ckptd.integrations.dcp.names import CheckpointId, text_of
from ckptd.integrations.dcp.planner import LoadPlanner
from ckptd.integrations.dcp.reader import StorageReader
from ckptd.integrations.dcp.stager import AsyncStager
from ckptd.integrations.dcp.writer import StorageWriter

__all__ = ["AsyncStager", "LoadPlanner", "StorageReader", "StorageWriter", "async_save", "load", "save"]


_staging: list[AsyncStager] = []


def save(
    state_dict: dict[str, Any],
    *,
    checkpoint_id: CheckpointId = None,
    storage_writer: StorageWriter | None = None,
    planner: SavePlanner | None = None,
    process_group: dist.ProcessGroup | None = None,
    no_dist: bool = False,
) -> Metadata:
    """`dcp.save` into memory; a collective. Returns when the step has the writer's level: sealed, unless it says otherwise.

    Raises the CkptdError of the first rank that failed, on every rank; what failed without one is Unrecoverable.
    """
    with _plainly():
        metadata: Metadata = dcp_save(
            state_dict,
            checkpoint_id=text_of(checkpoint_id),
            storage_writer=storage_writer or StorageWriter(),
            planner=planner,
            process_group=process_group,
            no_dist=no_dist,
        )
    return metadata


def async_save(
    state_dict: dict[str, Any],
    *,
    checkpoint_id: CheckpointId = None,
    storage_writer: StorageWriter | None = None,
    planner: SavePlanner | None = None,
    process_group: dist.ProcessGroup | None = None,
    no_dist: bool = False,
    async_checkpointer_type: AsyncCheckpointerType = AsyncCheckpointerType.THREAD,
) -> Future[Metadata]:
    """`dcp.async_save` into memory: copies the state, returns, and saves the copy; a collective.

    The state may change as soon as this returns. The future raises what `dcp.save` raises: a CheckpointException, which is
    no Exception. Wait for it before the next save: DCP's collectives of two saves must not mix.
    """
    if not _staging:
        _staging.append(AsyncStager())
    with _plainly():
        answer = dcp_async_save(
            state_dict,
            checkpoint_id=text_of(checkpoint_id),
            storage_writer=storage_writer or StorageWriter(),
            planner=planner,
            process_group=process_group,
            async_checkpointer_type=async_checkpointer_type,
            async_stager=_staging[0],
            no_dist=no_dist,
        )
    assert isinstance(answer, Future), "the stager is not asynchronous"
    return answer


def load(
    state_dict: dict[str, Any],
    *,
    checkpoint_id: CheckpointId = None,
    storage_reader: StorageReader | None = None,
    planner: BaseLoadPlanner | None = None,
    process_group: dist.ProcessGroup | None = None,
    no_dist: bool = False,
) -> None:
    """`dcp.load` from memory into the state's tensors, with any number of ranks; a collective. Strict: see `LoadPlanner`.

    `checkpoint_id` None: the newest step. Raises the CkptdError of the first rank that failed, on every rank; what failed
    without one is Unrecoverable.
    """
    reader = storage_reader or StorageReader()
    with closing(reader), _plainly(reader):
        dcp_load(
            state_dict,
            checkpoint_id=text_of(checkpoint_id),
            storage_reader=reader,
            planner=planner or LoadPlanner(),
            process_group=process_group,
            no_dist=no_dist,
        )


@contextmanager
def _plainly(reader: StorageReader | None = None) -> Iterator[None]:
    """DCP's CheckpointException is no Exception, so nobody catches it: raise what is behind it."""
    try:
        yield
    except CheckpointException as failed:
        if reader is not None and reader.failure is not None:
            raise reader.failure from failed
        errors = {rank: error for rank, (error, _) in sorted(failed.failures.items())}
        for error in errors.values():
            if isinstance(error, CkptdError):
                raise error from failed
        rank, first = next(iter(errors.items()))
        raise Unrecoverable(
            f"{len(errors)} ranks failed, rank {rank} first: {type(first).__name__}: {first}"
        ) from failed
