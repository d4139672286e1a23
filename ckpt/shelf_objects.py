"""A storage root that is a prefix of an object store, looked at from outside.

A prefix of a step without a manifest is being written, or was when its writer died; so are uploads that nobody has
completed, which no listing of objects shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from ckptd.ckpt import manifest
from ckptd.ckpt.bucket import Bucket, Object
from ckptd.ckpt.errors import StorageError
from ckptd.ckpt.model import JOB_NAME, Version
from ckptd.ckpt.objects import OURS, PARALLEL, Objects
from ckptd.ckpt.place import Place
from ckptd.ckpt.shelf import Leftover, Published, judged
from ckptd.ckpt.uploads import Upload, Uploads, is_offered

_Step = Mapping[str, Object]


class ObjectShelf:
    """A prefix: a `Shelf`. What is not ours in it is neither counted nor removed."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._uploads = Uploads(bucket) if is_offered(bucket) else None

    @property
    def where(self) -> str:
        return self._bucket.url

    def place(self, job: str) -> Place:
        return Objects(self._bucket, job)

    def jobs(self) -> list[str]:
        names = {name for name, found in self._bucket.below(self._bucket.root).items() if found is None}
        begun = {upload.name.split("/")[0] for upload in self._begun(self._bucket.root)}
        return sorted(
            name for name in names | begun if JOB_NAME.fullmatch(name) and (name in begun or self._steps(name))
        )

    def knows(self, job: str) -> bool:
        return bool(self._steps(job) or self._begun(self._bucket.key(job)))

    def published(self, job: str) -> list[Published]:
        steps = self._known(job)
        whole = sorted((version for version in steps if manifest.MANIFEST in steps[version]), reverse=True)
        with ThreadPoolExecutor(PARALLEL, "manifests to read") as pool:
            return list(pool.map(lambda version: self._published(job, version, steps[version]), whole))

    def _published(self, job: str, version: Version, found: _Step) -> Published:
        described = found[manifest.MANIFEST]
        nbytes = sum(one.size for one in found.values())
        if described.size > manifest.MANIFEST_MAX:
            problem = f"{manifest.dir_name(version)}/{manifest.MANIFEST} has {described.size} bytes; it is not ours"
            return Published(version, 0, nbytes, described.written_at, problem)
        key = self._bucket.key(job, manifest.dir_name(version), manifest.MANIFEST)
        content = self._bucket.whole(key, described.size, manifest.MANIFEST_MAX)
        sizes = {name: one.size for name, one in found.items()}
        return judged(job, version, content, sizes, nbytes, described.written_at)

    def leftovers(self, job: str) -> list[Leftover]:
        steps, begun = self._known(job), dict[str, list[Upload]]()
        unpublished = {manifest.dir_name(version) for version in steps if manifest.MANIFEST not in steps[version]}
        for upload in self._begun(self._bucket.key(job)):
            name = upload.name.split("/")[0]
            version = manifest.version_of(name)
            if version is not None:  # of a step that is published, one by one; else they belong to all that was begun
                begun.setdefault(upload.name if manifest.MANIFEST in steps.get(version, {}) else name, []).append(
                    upload
                )
        found = []
        for name in sorted(unpublished | begun.keys()):
            version = manifest.version_of(name)
            objects = steps.get(version, {}) if version is not None else {}
            found.append(self._leftover(f"{self.where}/{job}/{name}", objects, begun.get(name, [])))
        return found

    def discard(self, leftover: Leftover) -> None:
        """First what vouches for the images, without which nobody publishes them. Never what has been written to since."""
        job, _, name = leftover.where.removeprefix(f"{self.where}/").partition("/")
        now = {item.where: item for item in self.leftovers(job)}.get(leftover.where)
        if now is None:
            return
        if now != leftover:
            raise StorageError(f"{leftover.where} was written to a moment ago; it stays, ask again later")
        version = manifest.version_of(name)
        objects = self._steps(job).get(version, {}) if version is not None else {}
        marks = [one for one in objects if one.endswith(manifest.SUMS)]
        for names in (marks, [one for one in objects if one not in marks]):
            self._bucket.delete([self._bucket.key(job, name, one) for one in names])
        for upload in self._of(job, name):
            if self._uploads:
                self._uploads.abort(upload)

    # ---- the parts ------------------------------------------------------------------------------------

    def _known(self, job: str) -> dict[Version, _Step]:
        steps = self._steps(job)
        if not steps and not self._begun(self._bucket.key(job)):
            raise StorageError(
                f"there is nothing of job {job} below {self.where}; are the URL and the job's name right?"
            )
        return steps

    def _steps(self, job: str) -> dict[Version, _Step]:
        """The objects that make up a job's steps, in one listing."""
        steps: dict[Version, dict[str, Object]] = {}
        for name, found in self._bucket.tree(self._bucket.key(job)).items():
            step, _, rest = name.partition("/")
            version = manifest.version_of(step)
            if version is not None and OURS.fullmatch(rest):
                steps.setdefault(version, {})[rest] = found
        return dict(steps)

    def _begun(self, prefix: str) -> list[Upload]:
        return self._uploads.below(prefix) if self._uploads else []

    def _of(self, job: str, name: str) -> list[Upload]:
        """The uploads of one leftover: of a step, or of one object."""
        begun = self._begun(self._bucket.key(job))
        return [upload for upload in begun if upload.name == name or upload.name.startswith(f"{name}/")]

    def _leftover(self, where: str, objects: _Step, begun: list[Upload]) -> Leftover:
        sent = [part for upload in begun if self._uploads for part in self._uploads.parts(upload)]
        times = [one.written_at for one in objects.values()]
        times += [part.written_at for part in sent] + [upload.begun_at for upload in begun]
        known = [at for at in times if at is not None]
        nbytes = sum(one.size for one in objects.values()) + sum(part.size for part in sent)
        return Leftover(where, nbytes, max(known) if len(known) == len(times) else None)
