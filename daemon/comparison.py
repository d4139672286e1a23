"""What a parity in the making has in common with one that stands here already.

What has changed is told by the sums of the capture, which the holders list. No peer has to be believed: an image's digest is
of its sums, and tables name images by their digests.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from ckptd.ckpt.errors import CkptdError, CorruptionError
from ckptd.ckpt.groups import groups_in
from ckptd.ckpt.inventory import Parity
from ckptd.ckpt.model import Image, Version
from ckptd.daemon.segments import Segments, Stretch
from ckptd.daemon.symbols import Stripe, Symbols
from ckptd.daemon.transport import NotHeld
from ckptd.daemon.unchanged import Run, Sums, alike, changes, images_of, runs
from ckptd.daemon.windows import WINDOW

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Older:
    """A parity that stands here, of the same stripe at another version, or under another map."""

    stripe: Stripe
    stretch: Stretch


class Comparer:
    """Finds older parities, and what has changed since. Used from one thread."""

    def __init__(self, segments: Segments, symbols: Symbols, pool: Executor) -> None:
        self._segments, self._symbols, self._pool = segments, symbols, pool

    def older(self, stripe: Stripe, parity: Parity) -> Older | None:
        """The parity to start from: this very one if it stands here damaged, else the newest whose data lies alike."""
        found: list[tuple[bool, Version, Older]] = []
        for kept, stretch in self._segments.parity_entries():
            group = groups_in(kept.table.map)[kept.parity.group]
            same = (kept.parity.stripe, kept.parity.row) == (parity.stripe, parity.row)
            if same and alike(stripe.table, stripe.group, kept.table, group):
                version = kept.parity.version
                older = Older(Stripe(stripe.ledger, kept.table, group, parity.stripe), stretch)
                found.append((version == parity.version, version, older))
        return max(found, key=lambda item: item[:2])[2] if found else None

    def plan(self, stripe: Stripe, older: Older | None, listed: Mapping[str, Sums]) -> list[Run]:
        """How to make a parity of images whose sums are `listed`: as much as can be of the older one."""
        if older is None:
            return runs(np.ones((stripe.group.layout.k, stripe.group.units(stripe.table)), np.bool_), WINDOW)
        return runs(changes(stripe, older.stripe, self.listed(older.stripe, listed)), WINDOW)

    def listed(self, stripe: Stripe, known: Mapping[str, Sums]) -> dict[str, Sums]:
        """What is `known`, with the sums of all other images that the stripe's data lies in, by digest, as far as they can
        be had: of images that earlier parities here protect, or asked for."""
        found, lacking = dict(known), dict[int, list[Image]]()
        for node, image in images_of(stripe):
            sums = found.get(image.digest)
            sums = self._segments.listed(image.digest) if sums is None else sums
            if sums is None:
                lacking.setdefault(node, []).append(image)
            else:
                found[image.digest] = sums
        for listed in self._pool.map(lambda item: self._ask(stripe, *item), lacking.items()):
            found |= listed
        return found

    def _ask(self, stripe: Stripe, node: int, images: Sequence[Image]) -> dict[str, Sums]:
        listed, version = dict[str, Sums](), stripe.table.version
        for image in images:
            try:
                listed[image.digest] = np.array(self._symbols.sums(stripe.ledger, node, version, image), np.uint64)
            except (NotHeld, CorruptionError) as error:  # of an older version that has made way, for example
                log.debug("%s; what it holds counts as changed", error)
            except CkptdError as error:
                log.debug("%s; what it holds counts as changed", error)
                break
        return listed
