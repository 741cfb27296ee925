"""Tasks whose questions are answered rightly or wrongly, and what is known of them: shares of right answers, and of guesses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from tasks.synthetic.blocks import BLOCK, FiniteTask
from tasks.task import Batch, Measurement, Scored

# Examples of a split without end, or of a long one, by which guessing is judged.
MOST_JUDGED = 4096


class AnswerTask(FiniteTask):
    """A task of ids that is scored by the share of right answers; what a right answer is, `Task.right` says."""

    def measure(self, split: str, scored: Iterable[Scored]) -> list[Measurement]:
        """accuracy, accuracy_macro, exact_match and nll, over the split and by every slice, see `answer_scores`."""
        return answer_scores(self, split, scored)

    def references(self, split: str, *, reach: int | None) -> list[Measurement]:
        """`chance`, over the split and by every slice: of naming any of the different answers that the example asks for."""
        count = min(MOST_JUDGED, self.num_examples(split) or BLOCK * len(self.streams(split)))
        return chances(self, split, self.batch(split, range(count)))


def answer_scores(task: FiniteTask, split: str, scored: Iterable[Scored]) -> list[Measurement]:
    """The scores of answers, over the split and for every value of every slice.

    accuracy: the share of right answers among all that are asked (micro average).
    accuracy_macro: the mean over the different targets of the share of right answers to each (macro average).
    exact_match: the share of examples whose answers are all right. nll: the mean over all that is asked, in nats.
    """
    example, target, right, nll = [], [], [], []
    slices: dict[str, list[int | float | str]] = {}
    count = 0
    for batch, loss, prediction in scored:
        asked = batch.asked
        example.append(count + asked.nonzero()[:, 0].numpy())
        target.append(batch.targets[asked].numpy())
        right.append(task.right(batch, prediction)[asked].numpy())
        nll.append(loss[asked].double().numpy())
        count += len(batch.targets)
        for name, column in batch.slices.items():
            slices.setdefault(name, []).extend(column)
    whole = Answers(np.concatenate(example), np.concatenate(target), np.concatenate(right), np.concatenate(nll), count)
    rows = whole.scores(split, {})
    for place, members in _groups(slices):
        rows += whole.only(members).scores(split, place)
    return rows


class Answers:
    """Answers [N], each with its example's number below `count`, its target, whether it is right, and its nll."""

    def __init__(self, example: np.ndarray, target: np.ndarray, right: np.ndarray, nll: np.ndarray, count: int) -> None:
        self.example, self.target, self.right, self.nll, self.count = example, target, right, nll, count

    def only(self, members: np.ndarray) -> Answers:
        """Those of some examples, given by their numbers in order, which are numbered anew."""
        places = np.full(self.count, -1)
        places[members] = np.arange(len(members))
        chosen = places[self.example] >= 0
        kept = self.target[chosen], self.right[chosen], self.nll[chosen]
        return Answers(places[self.example[chosen]], *kept, count=len(members))

    def scores(self, split: str, place: dict[str, int | float | str]) -> list[Measurement]:
        asked = np.bincount(self.example, minlength=self.count)
        _, classes = np.unique(self.target, return_inverse=True)
        macro = (np.bincount(classes, self.right) / np.bincount(classes)).mean()
        exact = np.bincount(self.example, self.right, minlength=self.count) == asked
        return [
            self._mean("accuracy", self.right, asked, split, place),
            Measurement("accuracy_macro", float(macro), split, place, len(self.right)),
            Measurement("exact_match", float(exact.mean()), split, place, self.count, tuple(exact.astype(float).tolist())),
            self._mean("nll", self.nll, asked, split, place),
        ]

    def _mean(
        self, metric: str, values: np.ndarray, asked: np.ndarray, split: str, place: dict[str, int | float | str]
    ) -> Measurement:
        """The mean over answers; with that of every example where all are asked equally much, so that both agree."""
        examples = None
        if (asked == asked[0]).all():
            examples = tuple((np.bincount(self.example, values, minlength=self.count) / asked).tolist())
        return Measurement(metric, float(values.mean()), split, place, len(values) if examples is None else self.count, examples)


def chances(task: FiniteTask, split: str, batch: Batch) -> list[Measurement]:
    """`chance` over a batch and for every value of every slice: what naming any of an example's choices scores."""
    weight = batch.asked.numpy().sum(axis=1)
    guess = np.array([1.0 / len(ids) for ids in task.choices(batch)])
    rows = [Measurement("chance", float(np.average(guess, weights=weight)), split, {}, len(guess))]
    for place, members in _groups(batch.slices):
        mean = np.average(guess[members], weights=weight[members])
        rows.append(Measurement("chance", float(mean), split, place, len(members)))
    return rows


def _groups(slices: dict[str, list[int | float | str]]) -> Iterator[tuple[dict[str, int | float | str], np.ndarray]]:
    """Every value of every slice, with the numbers of its examples."""
    for name, column in slices.items():
        values = np.asarray(column, dtype=object)
        for value in sorted(set(column)):
            yield {name: value}, np.flatnonzero(values == value)
