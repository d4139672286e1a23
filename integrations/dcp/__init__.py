"""torch.distributed.checkpoint on the memory tier; public as `ckptd.dcp`. See docs/dcp.md."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from typing import Any, TypeVar

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
from ckptd.integrations.journal import logger

__all__ = ["AsyncStager", "LoadPlanner", "StorageReader", "StorageWriter", "async_save", "load", "save"]


T = TypeVar("T")
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
    call: Callable[[], Metadata] = partial(
        dcp_save,
        state_dict,
        checkpoint_id=text_of(checkpoint_id),
        storage_writer=storage_writer or StorageWriter(),
        planner=planner,
        process_group=process_group,
        no_dist=no_dist,
    )
    return _plainly(call)


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
    call: Callable[[], None] = partial(
        dcp_load,
        state_dict,
        checkpoint_id=text_of(checkpoint_id),
        storage_reader=reader,
        planner=planner or LoadPlanner(),
        process_group=process_group,
        no_dist=no_dist,
    )
    with closing(reader):
        _plainly(call, reader)


def _plainly(call: Callable[[], T], reader: StorageReader | None = None) -> T:
    """DCP's CheckpointException is no Exception, so nobody catches it: raise what is behind it.

    DCP's frames hold the error, each other and the process group. They go at once, or the group would live until the
    interpreter ends, where gloo's threads abort. So the error comes without them.
    """
    try:
        return call()
    except CheckpointException as failed:
        cause = _behind(failed, reader).with_traceback(None)
    gc.collect()
    try:
        raise cause
    finally:
        del cause


def _behind(failed: CheckpointException, reader: StorageReader | None) -> CkptdError:
    if reader is not None and reader.failure is not None:
        failure, reader.failure = reader.failure, None
        return failure
    errors = {rank: error for rank, (error, _) in sorted(failed.failures.items())}
    for error in errors.values():
        if isinstance(error, CkptdError):
            return error
    logger.error("ckptd: %s", failed)  # with every rank's traceback
    rank, first = next(iter(errors.items()))
    return Unrecoverable(f"{len(errors)} ranks failed, rank {rank} first: {type(first).__name__}: {first}")
