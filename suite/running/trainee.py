"""A run's model under training, as far as it lies on this rank: its steps, its checkpoints, and the whole of its weights."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.backbone import Backbone
from suite.beginning import copied_log, fill_first, shared
from suite.compute.acceleration import accelerate, training_step
from suite.compute.optimization import build_optimizer, learning_rate, set_learning_rate
from suite.compute.parallel import World
from suite.compute.pieces import PiecewiseAdamW
from suite.plan import Run
from suite.running.batches import Parts
from suite.running.health import MOST_UNREAD
from suite.saved import new_model
from suite.store.beside import Beside, Copies, Outcome
from suite.store.checkpoint import Progress, load_checkpoint, save_checkpoint, training_state
from suite.store.foreign import reason_of
from suite.store.keeping import Keeping, Shared
from suite.store.lock import Superseded
from suite.store.run_directory import RunDirectory

if TYPE_CHECKING:
    from suite.compute.accumulation import AccumulatedStep
    from suite.store.sharded import Sharded

CPU = torch.device("cpu")
# Where a thread that writes would take the core that trains.
WRITTEN_AT_ONCE = ("cpu",)


class Stopwatch:
    """Adds up the seconds spent inside `with stopwatch():` blocks."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start


class Trainee:
    """What trains of a run on this rank. All ranks call the same methods in the same order.

    best: the weights of the best validation, where they are kept. work: how long steps took. rate: the last step's.
    """

    def __init__(self, run: Run, directory: RunDirectory, world: World, on_note: Callable[[str], None]) -> None:
        self.run, self.directory, self.world, self.on_note = run, directory, world, on_note
        self.keeping = Keeping(run.compute.keep_last, run.compute.keep_every)
        self.best: dict[str, Tensor] | None = None
        self.work, self.rate = Stopwatch(), 0.0
        self._plain: Backbone | None = None
        self._copies, self._beside = Copies(), Beside()
        self._sharded: Sharded | None = None
        self._in_ranks: AccumulatedStep | None = None
        self._by_rank = deque[tuple[int, Tensor]](maxlen=2 * MOST_UNREAD)
        if run.compute.parallel == "none" and run.compute.micro_batch is None:
            self._alone()
        else:
            self._in_parts()

    def _alone(self) -> None:
        run, train = self.run, self.run.config.train
        self.model = new_model(run, self.world.device)
        fill_first(run.config, Path(run.paths.results), self.model)
        self.optimizer = build_optimizer(self.model, train)
        accelerate(self.model, run.compute)
        flops = 3.0 * run.cost.flops_per_token * train.batch_size * run.config.task.seq_len
        self.update: Callable[..., Tensor] = training_step(self.model, self.optimizer, train, run.compute, flops=flops)

    def _in_parts(self) -> None:
        # Imported here: DTensor takes two seconds, and a process by itself has none.
        from suite.compute.accumulation import AccumulatedStep
        from suite.compute.wrapping import ShardedAdamW, begin_moments, wrapped
        from suite.store.sharded import Sharded

        run, world = self.run, self.world
        # Sharded, the whole model is on no GPU at any time: every block goes there by itself and leaves its shard.
        self.model = new_model(run, CPU if run.compute.parallel == "fsdp" else world.device)
        fill_first(run.config, Path(run.paths.results), self.model)
        accelerate(self.model, run.compute)
        module = wrapped(self.model, run.compute, world)
        kind = ShardedAdamW if run.compute.parallel == "fsdp" else PiecewiseAdamW
        self.optimizer = build_optimizer(self.model, run.config.train, kind=kind)
        self.update = step = AccumulatedStep(self.model, self.optimizer, run.config.train, module=module, world=world)
        if run.compute.parallel != "none":
            self._in_ranks = step
            begin_moments(self.optimizer)
            self._sharded = Sharded(self.directory, world, self.keeping, self.on_note)

    def step(self, step: int, parts: Parts) -> Tensor:
        """Takes a step, numbered from 0: loss and gradient norm [2] on the device, equal on all ranks, not waited for."""
        self.model.begin_step(seed=self.run.config.seed, step=step)
        self.rate = learning_rate(step, self.run.config.train)
        set_learning_rate(self.optimizer, self.rate)
        with self.work():
            numbers = self.update(*parts)
        if self._in_ranks is not None:
            self._by_rank.append((step, self._in_ranks.by_rank))
        return numbers

    def at_fault(self, step: int) -> list[int]:
        """The ranks on which the loss of one of the last steps is not finite; nothing where a process trains by itself."""
        found = [by_rank for each, by_rank in self._by_rank if each == step]
        return found[0].isfinite().logical_not().nonzero().flatten().tolist() if found else []

    def resume(self) -> Progress:
        """Goes back to the newest checkpoint that is whole; without one, to the initial weights."""
        progress, train = self._loaded(None), self.run.config.train
        if progress.step == 0 and train.continue_from is not None:
            way = shared(self.run.config, Path(self.run.paths.results), data_fingerprint=self.run.data_fingerprint)
            progress = self._loaded(way)
            if progress.step and self.world.is_first:
                copied_log(way.directory, self.directory, progress.step)
        return progress

    def _loaded(self, way: Shared | None) -> Progress:
        """The newest checkpoint of this run, or of another one's that are on this run's way, read into the model."""
        if self._sharded is None:
            directory, steps = (self.directory, None) if way is None else (way.directory, way.steps)
            progress, self.best = load_checkpoint(directory, self.model, self.optimizer, self.on_note, steps)
            return progress
        keeps = self.run.config.train.keep == "best"
        best = {name: torch.empty_like(tensor) for name, tensor in self.model.state_dict().items()} if keeps else {}
        progress = self._sharded.load(training_state(self.model, self.optimizer, best), way=way)
        self.best = best if keeps and progress.best_loss is not None else None
        return progress

    def save(self, progress: Progress) -> None:
        """Writes a checkpoint, beside a GPU and on several ranks while training goes on. Raises OSError and Superseded."""
        tensors = training_state(self.model, self.optimizer, self.best)
        if self._sharded is not None:
            self._sharded.save(tensors, progress, blocking=False)
        elif self.world.device.type in WRITTEN_AT_ONCE:
            save_checkpoint(self.directory, tensors, progress, self.keeping)
        else:
            self.settle()
            self._beside.begin(functools.partial(self._write, self._copies.of(tensors), progress))

    def _write(self, tensors: dict[str, Tensor], progress: Progress) -> Outcome:
        """What the thread of a process by itself does."""
        try:
            save_checkpoint(self.directory, tensors, progress, self.keeping)
        except OSError as error:
            return reason_of(error)
        except Superseded as error:
            return error
        return ""

    def settle(self) -> None:
        """Waits for a checkpoint that is still being written. Raises Superseded."""
        if self._sharded is not None:
            self._sharded.look()
        elif left_out := self._beside.ended():
            self.on_note(f"a checkpoint is left out: {left_out}")

    def keep(self) -> None:
        """Keeps the weights as they are now: no other validation was better."""
        self.best = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def restore(self) -> None:
        """Gives the model the weights that are kept, if any are."""
        if self.best is not None:
            self.model.load_state_dict(self.best)

    def whole(self) -> Backbone | None:
        """The model as a single process has it, on rank 0; None elsewhere. It is not to be changed."""
        if self.run.compute.parallel != "fsdp":
            return self.model if self.world.is_first else None
        from suite.compute.wrapping import whole_tensors

        held = whole_tensors(self.model.state_dict(), self.world)
        if not self.world.is_first:
            return None
        if self._plain is None:
            self._plain = new_model(self.run, self.world.device)
        self._plain.load_state_dict(held)
        return self._plain
