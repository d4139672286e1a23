"""Lightning's Trainer goes on where it was killed: a callback, and two places of its loops.

    fit_loop.setup_data     the first time: with the random numbers that the data loaders were made with
    epoch_loop.reset        begins an epoch: find the place in the data, if this one had begun before

A step is captured when the next batch's training is about to start: logging and validation are done then.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import lightning
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy

from ckptd.ckpt.errors import CkptdError, UsageError
from ckptd.integrations.checkpointer import Checkpointer
from ckptd.integrations.frameworks.loops import Loops
from ckptd.integrations.frameworks.moments import Moment, generators_of
from ckptd.integrations.journal import logger

_FETCHER, _RESTARTING, _STAGES = "_data_fetcher", "_restarting", "reset_restart_stage"


class CkptdCallback(Callback):  # type: ignore[misc]
    """Keeps a fit recoverable: `Trainer(callbacks=[CkptdCallback()])`, and `trainer.fit()` resumes.

    Captured: the module, optimizer, learning rate schedulers, gradient scaler, random numbers, the loops' progress, the
    position in the data, the states of callbacks and of the data module. Lightning's own checkpoints are left as they are.
    """

    def __init__(self, **options: Any) -> None:
        """`options`: what Checkpointer takes (every, storage, job, ...), and further objects to capture, by name.

        `fit()` raises what `Checkpointer.restore` raises, UsageError by name for what cannot be resumed exactly, and
        CkptdError when this lightning has not the loops that it knows.
        """
        self._options = options
        self._checkpointer: Checkpointer | None = None
        self._loops: Loops | None = None
        self._resuming: Moment | None = None
        self._captured = 0
        self._validating = ExitStack()

    @property
    def checkpointer(self) -> Checkpointer | None:
        """The Checkpointer of the fit that runs or ran last: its `stats` say what became of the snapshots."""
        return self._checkpointer

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the newest step back, when all objects are made and the loops have not begun."""
        check(trainer)
        refuse(trainer, pl_module)
        if self._checkpointer is not None:
            self._checkpointer.close()  # of an earlier fit() that was left by an exception
        self._loops, self._resuming = Loops(trainer), None
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        self._checkpointer = Checkpointer(
            model=trainer.strategy.model,
            **{f"optimizer{at or ''}": optimizer for at, optimizer in enumerate(trainer.optimizers)},
            **{f"scheduler{at or ''}": scheduler for at, scheduler in enumerate(schedulers)},
            trainer=self._loops, **self._options,
        )  # fmt: skip
        self._captured = self._checkpointer.restore()
        if self._loops.restored:
            self._resuming = Moment.now()
        self._take_over(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._resuming is not None:
            self._resuming.bring_back()
            self._resuming = None
        self._capture(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._capture(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._checkpointer is not None:
            self._validating.enter_context(self._checkpointer.phase("eval"))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validating.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._checkpointer is not None and stage == "fit":
            self._checkpointer.close()

    def _capture(self, trainer: Trainer) -> None:
        """Capture the update that was done last, once: with accumulation, some batches end without one."""
        step = trainer.global_step
        if self._checkpointer is not None and step > self._captured:
            self._captured = step
            self._checkpointer.step(step)

    def _take_over(self, trainer: Trainer) -> None:
        assert self._loops is not None
        fit_loop, loops = trainer.fit_loop, self._loops
        epoch_loop = fit_loop.epoch_loop
        set_up, reset = type(fit_loop).setup_data.__get__(fit_loop), type(epoch_loop).reset.__get__(epoch_loop)

        def first_set_up() -> None:
            del fit_loop.setup_data
            if not loops.restored:
                loops.at_start = Moment.now()
            loops.at_start.bring_back()
            set_up()
            if loops.restored:
                loops.check_data()

        def loaders() -> Any:
            return getattr(fit_loop, _FETCHER).combined_loader.flattened

        def begin_epoch() -> None:
            if self._resuming is not None:
                as_if_never_left(fit_loop)
            if self._resuming is None or epoch_loop.batch_progress.current.ready >= trainer.num_training_batches:
                reset()  # a new epoch
                loops.at_epoch = Moment.now(generators_of(*loaders()))
                return
            loops.at_epoch.bring_back(generators_of(*loaders()))
            if trainer.current_epoch > 0:  # the first epoch's iteration began when the data were set up
                iter(getattr(fit_loop, _FETCHER))
            skip(getattr(fit_loop, _FETCHER), epoch_loop.batch_progress.current.ready)

        fit_loop.setup_data, epoch_loop.reset = first_set_up, begin_epoch


def as_if_never_left(fit_loop: Any) -> None:
    """Have none of what Lightning repeats or leaves out after its own checkpoints, which it takes at other places."""
    setattr(fit_loop, _RESTARTING, False)  # its property says yes whenever there is a limit of steps
    fit_loop.epoch_loop.restarting = False
    for loop in (fit_loop.epoch_loop, fit_loop.epoch_loop.val_loop):
        getattr(loop, _STAGES)()


def skip(fetcher: Any, batches: int) -> None:
    """Fetch so many batches and drop them, which moves any loader and its workers to where they were."""
    for _ in range(batches):
        next(fetcher)
    fetcher.fetched = 0  # the loop adds what it has done


def refuse(trainer: Trainer, module: LightningModule) -> None:
    """Raise UsageError for what would be captured or resumed wrongly, by the name that the user gave it."""
    strategy = type(trainer.strategy).__name__
    for found, what, instead in (
        (
            not module.automatic_optimization,
            "manual optimization, whose updates the loops do not count as steps",
            "let Lightning step the optimizer, or call a Checkpointer in training_step",
        ),
        (
            type(trainer.strategy) not in (SingleDeviceStrategy, DDPStrategy, ModelParallelStrategy),
            f"the strategy {strategy}, whose sharded states only it can load",
            "train on one device or with strategy='ddp', or take the callback out and save with Lightning",
        ),
        (
            trainer.ckpt_path is not None,
            "fit(ckpt_path=...), a second place to resume from",
            "leave it out; load weights into the module to begin with them",
        ),
        (
            trainer.reload_dataloaders_every_n_epochs > 0,
            "reload_dataloaders_every_n_epochs, which makes other loaders in the middle",
            "leave it out",
        ),
    ):
        if found:
            raise UsageError(f"this Trainer uses {what}; ckptd cannot resume that exactly: {instead}")
    for hook in ("on_save_checkpoint", "on_load_checkpoint"):
        if getattr(type(module), hook) is not getattr(LightningModule, hook):
            logger.warning(
                "ckptd: %s.%s is not called; to capture what it adds, give its object by name: CkptdCallback(ema=...)",
                type(module).__name__, hook,
            )  # fmt: skip


def check(trainer: Trainer) -> None:
    """Raise CkptdError when this lightning lacks a name that the callback is made of, before anything is trained."""
    loop = trainer.fit_loop
    bad = [
        name
        for name in (_FETCHER, _RESTARTING, "setup_data", "epoch_loop", "epoch_progress")
        if not hasattr(loop, name)
    ]
    within = getattr(loop, "epoch_loop", None)
    bad += [name for name in ("reset", "batch_progress", "val_loop", _STAGES) if not hasattr(within, name)]
    if bad:
        raise CkptdError(
            f"lightning {lightning.__version__} has no {', '.join(bad)} in its loops as CkptdCallback knows them; it was "
            "made for 2.6: install that, or call a Checkpointer in a loop of your own"
        )
