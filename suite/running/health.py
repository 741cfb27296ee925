"""Whether a run still learns, from the loss and the gradient norm of every step."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from suite.store.checkpoint import Progress

# A model is given up when its loss (nats, or squared error of targets whose variance is about 1) has been this much
# above the untrained one and that of guessing, on average over so many steps.
# The soft cap keeps the loss of a model that has blown up finite, so waiting for a NaN would be waiting for ever.
DIVERGED_BY = 1.0
DIVERGED_STEPS = 20
# A spike is a loss that is above the mean of the last DIVERGED_STEPS steps by this much, and by so many of their standard
# deviations: the one alone would be noise of small batches, the other alone a loss that hardly changes.
SPIKE_BY = 0.5
SPIKE_DEVIATIONS = 5.0

MOST_UNREAD = 16
MOST_NAMED = 16


class Diverged(Exception):
    """Training left the numbers that can be learnt from; `step` is where, `examples` the training examples of its batch."""

    def __init__(self, step: int, reason: str, examples: Sequence[int]) -> None:
        more = f" and {len(examples) - MOST_NAMED} more" if len(examples) > MOST_NAMED else ""
        batch = f"; its batch has the examples {', '.join(map(str, examples[:MOST_NAMED]))}{more}" if examples else ""
        super().__init__(f"diverged at step {step}: {reason}{batch}")
        self.step, self.reason, self.examples = step, reason, tuple(examples)


class Health:
    """The losses of the last steps, and an end to what has left the numbers that can be learnt from.

    nonfinite: what train.nonfinite says. examples: the training examples of a step. on_note: is told of the first spike.
    skipped: the steps that were left out since training began.
    """

    def __init__(
        self,
        progress: Progress,
        guessing_loss: float,
        *,
        nonfinite: str,
        examples: Callable[[int], Sequence[int]],
        on_note: Callable[[str], None],
    ) -> None:
        self.first_loss, self.guessing_loss = progress.first_loss, guessing_loss
        self.losses: deque[float] = deque(progress.losses, maxlen=DIVERGED_STEPS)
        self.norm = math.nan
        self.skipped = progress.skipped
        self._skips, self._examples, self._on_note = nonfinite == "skip", examples, on_note
        self._in_a_row, self._is_told, self._spike = 0, False, dict[str, float]()

    def check(self, step: int, loss: float, norm: float) -> None:
        """Takes in a step. Raises Diverged."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._leave_out(step, f"loss {loss}, gradient norm {norm}")
            return
        self._in_a_row = 0
        self._look_for_spike(step, loss)
        self.losses.append(loss)
        self.norm = norm
        if step == self.skipped:
            self.first_loss = loss
        mean, start = sum(self.losses) / len(self.losses), max(self.first_loss, self.guessing_loss)
        if len(self.losses) == DIVERGED_STEPS and mean > start + DIVERGED_BY:
            raise Diverged(step, f"mean loss {mean:.2f} over {DIVERGED_STEPS} steps, untrained it is {start:.2f}", ())

    def spike(self) -> dict[str, float]:
        """The highest spike since this was asked last, for a line of the log; empty where there was none."""
        found, self._spike = self._spike, {}
        return found

    def _leave_out(self, step: int, what: str) -> None:
        """A step that is not finite: the optimiser has left it out, or training ends."""
        self.skipped += 1
        self._in_a_row += 1
        if not self._skips:
            raise Diverged(step, what, self._examples(step))
        if self._in_a_row == DIVERGED_STEPS:
            raise Diverged(step, f"{DIVERGED_STEPS} steps in a row were left out, the last with {what}", self._examples(step))

    def _look_for_spike(self, step: int, loss: float) -> None:
        if len(self.losses) < DIVERGED_STEPS:
            return
        mean = statistics.fmean(self.losses)
        if loss <= mean + max(SPIKE_BY, SPIKE_DEVIATIONS * statistics.pstdev(self.losses, mean)):
            return
        if loss > self._spike.get("spike_loss", -math.inf):
            self._spike = {"spike_step": step, "spike_loss": loss}
        if not self._is_told:
            self._is_told = True
            self._on_note(
                f"the loss of step {step} is {loss:.2f}, the mean of the {DIVERGED_STEPS} steps before it {mean:.2f}; "
                "later spikes stand in metrics.jsonl alone"
            )


class Unread(NamedTuple):
    """Loss and gradient norm of a step, numbers [2] on the host as soon as `written` has happened."""

    step: int
    numbers: Tensor
    written: torch.cuda.Event | None


class Readings:
    """Loss and gradient norm of every step, in order, on their way from the device.

    A GPU is not waited for until MOST_UNREAD steps are under way, so it never waits for the host in turn.
    """

    def __init__(self, device: torch.device) -> None:
        self._host = torch.empty(MOST_UNREAD, 2, pin_memory=True) if device.type == "cuda" else None
        self._unread: deque[Unread] = deque()

    def add(self, step: int, numbers: Tensor) -> None:
        """numbers [2]: loss and gradient norm, which the device may still be computing."""
        if self._host is None:
            self._unread.append(Unread(step, numbers, None))
            return
        place, written = self._host[step % MOST_UNREAD], torch.cuda.Event()
        place.copy_(numbers, non_blocking=True)
        written.record()
        self._unread.append(Unread(step, place, written))

    def read(self, *, leave: int = MOST_UNREAD - 1) -> Iterator[tuple[int, float, float]]:
        """The steps whose numbers are there, and as many more that no more than `leave` of them are under way."""
        while self._unread and (len(self._unread) > leave or _is_there(self._unread[0])):
            step, numbers, written = self._unread.popleft()
            if written is not None:
                written.synchronize()
            yield step, *numbers.tolist()


def _is_there(unread: Unread) -> bool:
    return unread.written is None or unread.written.query()
