"""Storage roots: a directory or the URL of an object store; anything else is refused before a daemon starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ckptd.ckpt.directory import Directory
from ckptd.ckpt.errors import UsageError
from ckptd.ckpt.places import place_at, root_of
from ckptd.ckpt.settings import read


def test_a_directory_is_taken_from_where_one_stands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A path is made absolute; a file URL is the same as its path, and gets the same promises."""
    monkeypatch.chdir(tmp_path)
    assert root_of("p/q") == tmp_path / "p" / "q"
    for text in ("file:///data/x/", "local:///data/x", "/data/x"):
        place = place_at(root_of(text), "job")
        assert isinstance(place, Directory)
        assert place.where == "/data/x/job"


def test_a_url_is_an_object_store() -> None:
    """The protocol does not mind its case, and a slash at the end is nothing; a path may also be given as an object."""
    assert root_of("S3://bucket/Prefix//") == "s3://bucket/Prefix"
    assert read(storage="s3://bucket").config().storage == "s3://bucket"
    assert read(storage=Path("/p")).config().storage == Path("/p")


@pytest.mark.parametrize(
    "text",
    ["s3://", "s3:///prefix", "s3://b/../x", "s3://b//x", "s3://b/a?versionId=1", "s3://b/*", "ckptd://job", "s3://b/x\ny",
     "simplecache::s3://b/x", "s3://b/a::b", "memory://b", "https://host/x"],
)  # fmt: skip
def test_what_is_no_root_is_refused(text: str) -> None:
    """Names that would leave the prefix, mean a pattern, lead back to ckptd itself, or to where nothing can be kept."""
    if text.startswith("simplecache"):
        assert isinstance(root_of(text), Path)  # not a URL that names one store: a file of an odd name
        return
    with pytest.raises(UsageError, match="expected a directory, or an object store"):
        root_of(text)


@pytest.mark.usefixtures("without_stores")
def test_a_store_without_its_package_says_what_to_install() -> None:
    """The extra is named; an unknown protocol is refused, too."""
    with pytest.raises(UsageError, match=r'storage s3://b: .*pip install "ckptd\[s3\]"'):
        place_at("s3://b", "job")
    with pytest.raises(UsageError, match=r'storage gs://b: .*pip install "ckptd\[gcs\]"'):
        place_at("gs://b", "job")
    with pytest.raises(UsageError, match=r"storage nonsense://b: .*expected a directory or the URL"):
        place_at("nonsense://b", "job")


@pytest.mark.slow
def test_no_package_of_a_store_is_imported_before_a_url_asks_for_it() -> None:
    """Neither ckptd nor a daemon with a directory imports fsspec or s3fs."""
    code = (
        "import sys, ckptd, ckptd.daemon.main, ckptd.daemon.cli; from pathlib import Path\n"
        "from ckptd.ckpt.storage import Storage; Storage(Path('/x'), 'job')\n"
        "print(sorted({'fsspec', 's3fs', 'boto3', 'botocore', 'aiohttp', 'torch'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert found.stdout.strip() == "[]"
