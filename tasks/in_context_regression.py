"""In-context linear regression (Garg et al. 2022, arXiv 2208.01066) on constructed tokens.

A token that joins a pair with the next question spares a layer the work of joining them, so that one layer can solve the
regression (von Oswald et al. 2023, arXiv 2309.05858).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, NamedTuple

import numpy as np
import torch
from torch import Tensor

from conf.settings import Count, Neutral, Positive, Refusal, below
from tasks.positions import rows_by_position
from tasks.synthetic.blocks import BLOCK, BlockTask, Drawn
from tasks.synthetic.least_squares import kalman, ridge
from tasks.task import Batch, Measurement, Scored, Vectors


class Problem(NamedTuple):
    """The regression behind a batch, as a layer that solves it would be given it.

    At token t the pair (keys, values) [B, T, input_dim], [B, T, output_dim] is (x_{t-1}, y_{t-1}), queries is x_t and
    restarts [T] says whether what came before t, this pair included, is of no use any more.
    """

    keys: Tensor
    values: Tensor
    queries: Tensor
    restarts: Tensor


class InContextRegression(BlockTask):
    """Token t is (x_{t-1}, y_{t-1}, x_t), and y_t is asked; before the first pair stand zeros.

        y_t = W_t x_t + noise e_t,   x_t uniform on the sphere of radius sqrt(n),   e_t ~ N(0, I)

    W_t [output_dim, input_dim] has entries of N(0, 1/n), n = input_dim, so that each number of W_t x_t has variance 1 at
    every t. x of one length lose nothing in a mixer that brings its keys to unit length.

    noise: a standard deviation. drift: W_t = sqrt(1 - drift^2) W_{t-1} + drift F_t with F_t a fresh draw, a random walk
    that keeps its scale. segment_len: W is drawn afresh at every multiple of it; None for never. restarts_told: the state of
    a model is reset where the first pair of a new W comes in, so that it need not learn to forget what the old one taught.
    """

    class Settings(BlockTask.Settings, kw_only=True):
        input_dim: Count
        output_dim: Count
        noise: Positive
        drift: Annotated[float, below(0, 1)]
        segment_len: Count | None
        restarts_told: Annotated[bool, Neutral(False)]

        def __post_init__(self) -> None:
            if self.restarts_told and self.segment_len is None:
                raise Refusal("restarts_told", True, "false with task.segment_len=null, which redraws no W")

    type = "in_context_regression.InContextRegression"
    version = 1
    cached_blocks = 4

    def __init__(self, settings: Settings, *, seed: int) -> None:
        super().__init__(settings, seed=seed)
        self.input_dim, self.output_dim = settings.input_dim, settings.output_dim
        self.noise, self.drift = settings.noise, settings.drift
        self.restarts_told = settings.restarts_told

    @property
    def interface(self) -> Vectors:
        return Vectors(2 * self.input_dim + self.output_dim, self.output_dim)

    @property
    def guessing_loss(self) -> float:
        return 1.0 + self.noise**2

    @property
    def regularizer(self) -> float:
        """The Lambda with which ridge regression on x is the best answer to a W that stays: noise^2 over W's variance."""
        return self.noise**2 * self.input_dim

    @property
    def restarts(self) -> np.ndarray:
        """[T] bool: where W is drawn afresh."""
        return np.arange(self.seq_len) % (self.settings.segment_len or self.seq_len) == 0

    def batch(self, split: str, indices: Sequence[int]) -> Batch:
        x, y = map(torch.from_numpy, self.drawn(split, indices))
        before = torch.cat([x, y], dim=-1).roll(1, dims=1)
        before[:, 0] = 0.0
        return Batch(torch.cat([before, x], dim=-1), y, self._starts(len(x)) if self.restarts_told else None)

    def _starts(self, count: int) -> Tensor:
        """[count, T] bool: the tokens behind `restarts`: they bring the first pair of a W, those before an old one's last."""
        starts = torch.from_numpy(self.restarts).roll(1)
        starts[0] = False
        return starts.expand(count, -1)

    def draw(self, rng: np.random.Generator, split: str, stream: int) -> Drawn:
        """x [BLOCK, T, input_dim] and y [BLOCK, T, output_dim]."""
        x = rng.standard_normal((BLOCK, self.seq_len, self.input_dim))
        x *= math.sqrt(self.input_dim) / np.linalg.norm(x, axis=-1, keepdims=True)
        y = self.noise * rng.standard_normal((BLOCK, self.seq_len, self.output_dim))
        for t, restart in enumerate(self.restarts):
            if restart:
                W = self._draw_map(rng)
            elif self.drift:
                W = math.sqrt(1 - self.drift**2) * W + self.drift * self._draw_map(rng)
            y[:, t] += (W @ x[:, t, :, None])[..., 0]
        return x.astype(np.float32), y.astype(np.float32)

    def _draw_map(self, rng: np.random.Generator) -> np.ndarray:
        return rng.standard_normal((BLOCK, self.output_dim, self.input_dim)) / math.sqrt(self.input_dim)

    def problem(self, batch: Batch) -> Problem:
        """What the tokens of a batch say, taken apart."""
        sizes = [self.input_dim, self.output_dim, self.input_dim]
        return Problem(*batch.tokens.split(sizes, dim=-1), torch.from_numpy(self.restarts))

    def oracle(self, batch: Batch) -> Tensor:
        """The posterior mean of every target [B, T, output_dim] from the tokens alone, float64."""
        x, y = self._pairs(batch)
        return torch.from_numpy(kalman(x, y, noise=self.noise, drift=self.drift, restarts=self.restarts))

    def ridge(self, batch: Batch) -> Tensor:
        """The same by ridge regression with the best Lambda for a W that stays, over the pairs since W was drawn."""
        x, y = self._pairs(batch)
        return torch.from_numpy(ridge(x, y, regularizer=self.regularizer, restarts=self.restarts))

    def _pairs(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """x and y in float64. The last y is in no token and in no answer."""
        problem = self.problem(batch)
        y = problem.values.roll(-1, dims=1)
        y[:, -1] = 0.0
        return problem.queries.double().numpy(), y.double().numpy()

    def measure(self, split: str, scored: Iterable[Scored]) -> list[Measurement]:
        """squared_error, the mean over output_dim: over all positions, at every position, and in bands with their examples."""
        errors = torch.cat([loss.double() for _, loss, _ in scored])
        return rows_by_position("squared_error", split, errors.numpy())

    def references(self, split: str, *, reach: int | None) -> list[Measurement]:
        """The squared error, sliced as in `measure`, of the best answers: `bayes_error`, `ridge_error`, and `zero_error`.

        On the examples of the split (the first BLOCK for "train"). reach is not considered: every pair can be in sight.
        """
        batch = self.batch(split, range(self.num_examples(split) or BLOCK))
        answers = {"bayes_error": self.oracle(batch), "ridge_error": self.ridge(batch), "zero_error": torch.zeros(())}
        rows = []
        for metric, answer in answers.items():
            errors = (answer - batch.targets.double()).square().mean(-1)
            rows += rows_by_position(metric, split, errors.numpy())
        return rows
