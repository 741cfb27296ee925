"""What workers say of their runs, and what is known of a run before it begins. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Pulse:
    """How far a training is: what a progress line shows."""

    step: int
    steps: int
    loss: float
    tokens_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class Share:
    """How far an evaluation is, or one part of its work. seconds_left: None where too little is done to say."""

    done: int
    total: int
    seconds_left: float | None


@dataclass(frozen=True)
class Event:
    """What happened to a run: `kind` is started, pulse, stage, share, note, done, skipped, failed or lost."""

    run_id: str
    title: str
    kind: str
    text: str = ""
    pulse: Pulse | None = None
    share: Share | None = None


Listener = Callable[[Event], None]


@dataclass(frozen=True)
class Outlook:
    """What a run has before it. kind: runs of one kind have speeds of one kind, the model's name.

    work: the cost of its training in any unit that all runs share, 0 where it is trained. stages: titles of its evaluations.
    """

    run_id: str
    kind: str
    work: float
    stages: tuple[str, ...]
