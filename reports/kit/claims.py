"""A figure of a published paper beside ours: what fills it, what the paper shows in it, and whether ours shows the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from conf.settings import LARGEST, Line, Name, Natural, Refusal, Settings, within
from reports.kit.arguments import Model
from reports.kit.commands import suite_command
from reports.kit.fills import hours_of, training_flops
from reports.kit.page import Part, bound_part
from reports.kit.parts import Drawing, Frames, NoData
from reports.kit.render import counted, scientific
from reports.kit.study import read_study

FEW_RUNS = 12
"""So many runs are named one by one in a command."""


class Drawn(Settings, kw_only=True):
    """A figure of another page, with its arguments, that is drawn once more of fewer runs."""

    type: str
    arguments: dict[str, Any] = {}

    def __post_init__(self) -> None:
        bound_part(self._part(), named=True)

    def _part(self) -> Part:
        return Part(name="drawn", type=self.type, arguments=self.arguments)

    def of(self, frames: Frames) -> Drawing:
        """The figure of these frames. Raises NoData."""
        drawing = bound_part(self._part())(frames)
        assert isinstance(drawing, Drawing), f"{self.type} is a table"
        return drawing


class Trained(Settings, kw_only=True):
    """Language models of a published study. cells: per size its numbers of tokens, as the study writes both.

    evaluation: what is asked of the trainings beside, such as "eval=position".
    """

    study: Name
    cells: dict[str, tuple[str, ...]]
    models: tuple[Model, ...]
    evaluation: tuple[Line, ...]

    def fills(self) -> Iterator[tuple[str, int, float]]:
        """A command a number of tokens, with how many trainings it is and their FLOPs."""
        study = read_study(self.study)
        for tokens in dict.fromkeys(tokens for several in self.cells.values() for tokens in several):
            sizes = [size for size, several in self.cells.items() if tokens in several]
            asked = [f"size={','.join(study.sizes[size][0] for size in sizes)}", f"model={','.join(self.models)}"]
            line = ["task=language", f"recipe={study.recipes[tokens]}", *asked, *study.trained_on, *self.evaluation]
            flops = sum(training_flops(study, size, tokens) for size in sizes)
            yield suite_command("run", line), len(sizes) * len(self.models), len(self.models) * flops

    def evaluated(self, frames: Frames) -> str:
        """The command that evaluates the models that the store has; nothing where it has none."""
        runs = frames.runs[(frames.runs["task"] == "language") & (frames.runs["status"] == "done")]
        ids = sorted(runs.loc[runs["model"].isin(self.models), "run_id"])
        named = ",".join(ids) if len(ids) <= FEW_RUNS else "all"
        return suite_command("evaluate", [f"run={named}", *self.evaluation]) if ids else ""


class Missing(Settings, kw_only=True):
    """What fills a figure: trainings of language models; or a command, its number of trainings and the FLOPs by `check`."""

    trained: Trained | None = None
    command: Line | None = None
    trainings: Natural = 0
    flops: Annotated[float, within(0, LARGEST)] = 0.0

    def __post_init__(self) -> None:
        if (self.trained is None) == (self.command is None):
            raise Refusal("command", self.command, "one line, or trained in its place")

    @contextmanager
    def told(self, frames: Frames) -> Iterator[None]:
        """Says how the figure is filled wherever the store lacks what it shows."""
        try:
            yield
        except NoData as nothing:
            raise NoData(f"{nothing}. {self.words(frames)}") from nothing

    def words(self, frames: Frames) -> str:
        """The commands with what they cost, see HOW of reports.kit.fills; models that were trained are to be evaluated alone."""
        fills = list(self.trained.fills()) if self.trained else [(str(self.command), self.trainings, self.flops)]
        if self.trained and (there := self.trained.evaluated(frames)):
            fills.insert(0, (there, 0, 0.0))
        return f"It is filled by: {'; '.join(f'{command} ({_cost(trainings, flops)})' for command, trainings, flops in fills)}"


def _cost(trainings: int, flops: float) -> str:
    if not trainings:
        return "nothing is trained"
    hours = hours_of(flops)
    spent = f"{hours:,.0f} hours" if hours >= 10 else f"{hours:.2g} hours"
    return f"{counted(trainings, 'training')}, {scientific(flops)} FLOPs, {spent} of one H100 at 40 %"


def claim(holds: bool | None, because: str) -> str:
    """The sentence on whether a paper's claim is seen here; None where that is not settled."""
    said = {True: "holds here", False: "does not hold here", None: "is undecided here"}
    return f"The paper's claim {said[holds]}: {because}."


def majority(votes: list[int]) -> bool | None:
    """Whether most of these say yes: 1 is yes, -1 is no, and 0, unsettled, may be either."""
    if not votes:
        return None
    if 2 * votes.count(1) > len(votes):
        return True
    return False if 2 * (votes.count(1) + votes.count(0)) <= len(votes) else None
