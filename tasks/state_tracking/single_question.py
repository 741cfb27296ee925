"""A base for tasks that ask one question an example."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import numpy as np

from tasks.synthetic.answers import MOST_JUDGED, AnswerTask
from tasks.synthetic.blocks import BLOCK, Drawn
from tasks.task import Batch, Measurement


class SingleQuestionTask(AnswerTask):
    """An AnswerTask that asks one question an example, whose answer is one of a few ids.

    answers: those ids. A guess is one of them; what else the example asks for, as in an AnswerTask, would always be right.
    """

    answers: range

    @abstractmethod
    def slices(self, drawn: Drawn) -> dict[str, list[float]]:
        """The slices of these examples, see `Batch`."""

    def choices(self, batch: Batch) -> list[np.ndarray]:
        """Per example the ids among which a guess chooses."""
        return [np.arange(self.answers.start, self.answers.stop)] * len(batch.tokens)

    def references(self, split: str, *, reach: int | None) -> list[Measurement]:
        """`chance`, over the split and for every value of every slice: naming any of the possible answers."""
        guess = 1 / len(self.answers)
        return [Measurement("chance", guess, split, place, len(rows)) for place, rows in self.places(self.judged(split))]

    def judged(self, split: str) -> Drawn:
        """The examples of a split by which it is judged without a model."""
        return self.drawn(split, range(min(MOST_JUDGED, self.num_examples(split) or BLOCK)))

    def places(self, drawn: Drawn) -> Iterator[tuple[dict[str, int | float | str], np.ndarray]]:
        """All of these examples, and those of every value of every slice, by their numbers."""
        yield {}, np.arange(len(drawn[0]))
        for name, column in self.slices(drawn).items():
            for value in sorted(set(column)):
                yield {name: value}, np.flatnonzero(np.array(column) == value)
