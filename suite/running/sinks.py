"""Where a training is mirrored for people who watch with other tools; nothing here is ever read back.

Each foreign library is imported by its own class alone. None of it decides a number, and none of it can harm a run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from conf.settings import RequestError
from suite.plan import Run
from suite.request.identity import flat_settings
from suite.store.foreign import check_no_link, reason_of
from tasks.task import Measurement

PROJECT = "linear-rnn-suite"


class Sink(Protocol):
    """Takes numbers by their step."""

    def add(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """A folder of event files a run; what a kill left behind the checkpoint is purged when the run goes on."""

    def __init__(self, run: Run, logs: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(logs / run.run_id), purge_step=step + 1 if step else None)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of Weights & Biases under the run's id, kept offline unless WANDB_MODE says otherwise."""

    def __init__(self, run: Run, logs: Path, step: int) -> None:
        import wandb

        folder = logs / run.run_id
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run.run_id,
            name=run.title,
            config=flat_settings(run.config),
            dir=str(folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
        )

    def add(self, step: int, values: Mapping[str, float]) -> None:
        # A step that it has already, after a run went on from its checkpoint, it leaves as it was.
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of Trackio, whose database holds all runs of a store unless TRACKIO_DIR names another place."""

    def __init__(self, run: Run, logs: Path, step: int) -> None:
        # Read once, when the package is imported.
        os.environ.setdefault("TRACKIO_DIR", str(logs))
        with contextlib.redirect_stdout(io.StringIO()):
            import trackio

            name, settings = f"{run.title} {run.run_id}", flat_settings(run.config)
            # Ended by the package's own function, or it ends the run once more at exit.
            self._finish = trackio.finish
            self._run = trackio.init(project=PROJECT, name=name, config=settings, resume="allow", embed=False)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._finish()


SINKS: dict[str, Callable[[Run, Path, int], Sink]] = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}
"""By the value of compute.log, which is the name of the package and of our extra too."""


def check_sinks(runs: Iterable[Run]) -> None:
    """Raises RequestError for a package that compute.log needs and that is not installed."""
    for name in {run.compute.log for run in runs} - {"none"}:
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            raise RequestError(
                f"compute.log={name} needs the package {name}: pip install -e '.[{name}]'; permitted without is none"
            )


class Mirror:
    """The sink of one run as compute.log names it, or none. What goes wrong there is said once, and ends it alone."""

    def __init__(self, run: Run, results: Path, on_note: Callable[[str], None]) -> None:
        self._run, self._results, self._on_note = run, results, on_note
        self._name = run.compute.log
        self._sink: Sink | None = None

    def begin(self, step: int) -> None:
        """Training begins behind so many steps."""
        if self._name == "none":
            return
        logs = self._results.resolve() / "logs" / self._name
        with self._tolerated():
            check_no_link(logs / self._run.run_id, self._results.resolve())
            logs.mkdir(parents=True, exist_ok=True)
            self._sink = SINKS[self._name](self._run, logs, step)

    def line(self, line: Mapping[str, float]) -> None:
        """A line of metrics.jsonl."""
        self._add(int(line["step"]), {f"train/{name}": value for name, value in line.items() if name != "step"})

    def scores(self, measured: Iterable[Measurement]) -> None:
        """What the training measured of the whole of its splits."""
        values = {f"{each.split}/{each.metric}": each.value for each in measured if not each.slice}
        self._add(self._run.config.train.steps, values)

    def close(self) -> None:
        if self._sink is not None:
            with self._tolerated():
                self._sink.close()

    def _add(self, step: int, values: Mapping[str, float]) -> None:
        if self._sink is not None:
            with self._tolerated():
                self._sink.add(step, values)

    @contextlib.contextmanager
    def _tolerated(self) -> Iterator[None]:
        try:
            yield
        # A sink is a foreign library with a network behind it: whatever it raises, the training goes on.
        except Exception as error:
            self._sink = None
            self._on_note(f"warning: compute.log={self._name} failed and is left out from here on: {reason_of(error)}")
