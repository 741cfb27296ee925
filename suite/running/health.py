"""Whether a run still learns, from the loss and the gradient norm of every step."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from suite.store.checkpoint import Progress

# A model is given up when its loss (nats, or squared error of targets whose variance is about 1) has been this much
# above the untrained one and that of guessing, on average over so many steps.
# The soft cap keeps the loss of a model that has blown up finite, so waiting for a NaN would be waiting for ever.
DIVERGED_BY = 1.0
DIVERGED_STEPS = 20

MOST_UNREAD = 16


class Diverged(Exception):
    """Training left the numbers that can be learnt from; `step` is where."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"diverged at step {step}: {reason}")
        self.step = step


class Health:
    """The losses of the last steps, and an end to what has left the numbers that can be learnt from."""

    def __init__(self, progress: Progress, guessing_loss: float) -> None:
        self.first_loss, self.guessing_loss = progress.first_loss, guessing_loss
        self.losses: deque[float] = deque(progress.losses, maxlen=DIVERGED_STEPS)
        self.norm = math.nan

    def check(self, step: int, loss: float, norm: float) -> None:
        """Takes in a step. Raises Diverged."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise Diverged(step, f"loss {loss}, gradient norm {norm}")
        self.losses.append(loss)
        self.norm = norm
        if step == 0:
            self.first_loss = loss
        mean, start = sum(self.losses) / len(self.losses), max(self.first_loss, self.guessing_loss)
        if len(self.losses) == DIVERGED_STEPS and mean > start + DIVERGED_BY:
            raise Diverged(step, f"mean loss {mean:.2f} over {DIVERGED_STEPS} steps, untrained it is {start:.2f}")


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
