"""What lies at a path, as content: a persisted step, a DCP directory, safetensors, or a `torch.save` file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckptd.ckpt import manifest
from ckptd.ckpt.errors import UsageError
from ckptd.integrations.exchange.content import Content
from ckptd.integrations.exchange.safefiles import of_files, of_index
from ckptd.integrations.exchange.sandboxed import default_limits, opened, size_of
from ckptd.integrations.exchange.steps import content_of

_INDEX = ".index.json"


@contextmanager
def content_at(path: Path, memory: int | None, time_s: float | None) -> Iterator[Content]:
    """The content of what lies at `path`, readable while the block runs. Nothing is unpickled in this process.

    `memory`, `time_s`: the most that opening somebody's pickles may take, in bytes and seconds. Raises UsageError for what
    is no checkpoint; CorruptionError, StateError, StorageError.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist; give a checkpoint's file or directory")
    kind = kind_of(path)
    if kind in ("torch", "dcp"):
        with opened(kind, path, default_limits(size_of(path), memory, time_s)) as content:
            yield content
    elif kind == "step":
        yield content_of(sorted(path.glob("rank-*.safetensors")))
    elif kind == "index":
        yield of_index(path if path.is_file() else next(path.glob(f"*.safetensors{_INDEX}")))
    else:
        yield of_files([path] if path.is_file() else sorted(path.glob("*.safetensors")))


def kind_of(path: Path) -> str:
    """ "step", "dcp", "index" (safetensors with one), "safetensors" or "torch". Raises UsageError."""
    if not path.is_dir():
        if path.name.endswith(_INDEX):
            return "index"
        return "safetensors" if path.suffix == ".safetensors" else "torch"
    names = {file.name for file in path.iterdir()}
    if manifest.MANIFEST in names and manifest.file_name(0) in names:
        return "step"
    if ".metadata" in names:
        return "dcp"
    indices = [name for name in names if name.endswith(f".safetensors{_INDEX}")]
    if len(indices) == 1:
        return "index"
    if indices or not any(name.endswith(".safetensors") for name in names):
        raise UsageError(
            f"{path} holds {len(indices)} safetensors indices, no .metadata of DCP and no manifest of ckptd; give the "
            "directory of one checkpoint, or one of its files (a torch.save file is given by its own name)"
        )
    return "safetensors"
