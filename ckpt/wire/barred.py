"""Bars to wire messages and back. Whatever comes in is checked here; a bad value raises CorruptionError."""

from __future__ import annotations

from ckptd.ckpt.barred import BARS_MAX, Bar, Barred, merged
from ckptd.ckpt.errors import CorruptionError
from ckptd.ckpt.model import Version
from ckptd.ckpt.tables import STEP_MAX, number
from ckptd.ckpt.wire import ckptd_pb2 as pb
from ckptd.ckpt.wire.translate_rounds import reason_in


def barred_out(barred: Barred) -> pb.Barred:
    bars = [
        pb.Bar(
            number=bar.number,
            version=pb.Version(epoch=bar.version.epoch, step=bar.version.step),
            reason=bar.reason,
            alone=bar.alone,
        )
        for bar in barred.bars
    ]
    return pb.Barred(lifted=barred.lifted, bars=bars)


def barred_in(message: pb.Barred) -> Barred:
    if len(message.bars) > BARS_MAX:
        raise CorruptionError(f"found {len(message.bars)} bars, expected {BARS_MAX} at most")
    bars = tuple(_bar_in(bar) for bar in message.bars)
    return merged(Barred(number("lifted bar", message.lifted, STEP_MAX), bars))


def _bar_in(message: pb.Bar) -> Bar:
    version = Version(number("epoch", message.version.epoch, STEP_MAX), number("step", message.version.step, STEP_MAX))
    reason = reason_in(message.reason)
    if not reason:
        raise CorruptionError(f"a bar of {version} without a reason")
    return Bar(number("bar", message.number, STEP_MAX), version, reason, message.alone)
