"""MAD's in-context recall and noisy in-context recall (Poli et al. 2024, arXiv 2403.17844): which value had this key?"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from conf.settings import Refusal, below, text, within
from tasks.mad.next_token import NextTokenTask
from tasks.mad.spaces import MOST_IDS, choices_for_many
from tasks.synthetic.blocks import BLOCK, Drawn
from tasks.task import Batch


class Recall(NextTokenTask):
    """k v k v ... k v: seq_len / 2 - 1 pairs of a uniform key and its value, then a probe, one of the pairs again.

    Ids are in this order: keys, values, noise_vocab_size noise tokens. Of the ids that are not noise the first half are keys.
    An example gives each key a uniform value, so two keys may have one value. Each pair but one is replaced with probability
    frac_noise by two uniform noise tokens. The probe is uniform among the different keys that came.

    Training asks for every next token. Validation and test ask at a key that has come before for its value. The last value
    is only asked for, so a model reads seq_len - 1 tokens.

    Differences from mad-lab: the place that is never noise is drawn among one place more than there are, so all pairs may be
    noise. mad-lab then fails; here the first pair is none. Its option without questions before the probe is left out, as in
    its benchmark.
    """

    class Settings(NextTokenTask.Settings, kw_only=True):
        vocab_size: Annotated[int, within(4, MOST_IDS)]
        noise_vocab_size: Annotated[int, within(0, MOST_IDS)]
        frac_noise: Annotated[float, below(0, 1)]

        def __post_init__(self) -> None:
            most = self.vocab_size - 4
            if self.noise_vocab_size > most:
                raise Refusal("noise_vocab_size", self.noise_vocab_size, f"0 to vocab_size - 4, here {most}")
            if self.frac_noise and not self.noise_vocab_size:
                wanted = f"whole numbers above 0 with frac_noise={text(self.frac_noise)}"
                raise Refusal("noise_vocab_size", self.noise_vocab_size, wanted)
            least = 2 + 2 * choices_for_many((self.vocab_size - self.noise_vocab_size) // 2)
            if self.seq_len % 2 or self.seq_len < least:
                raise Refusal("seq_len", self.seq_len, f"even numbers from {least}, so that there are examples for every split")

    settings: Settings
    type = "mad.recall"
    version = 1

    def __init__(self, settings: Settings, *, seed: int) -> None:
        super().__init__(settings, seed=seed)
        self.first_noise = settings.vocab_size - settings.noise_vocab_size
        self.num_keys = self.first_noise // 2
        self.num_pairs = settings.seq_len // 2 - 1  # without the probe

    def streams(self, split: str) -> tuple[int, ...]:
        return (0,)

    def draw(self, rng: np.random.Generator, split: str, stream: int) -> Drawn:
        keys = rng.integers(self.num_keys, size=(BLOCK, self.num_pairs))
        values = rng.integers(self.num_keys, self.first_noise, size=(BLOCK, self.num_keys))
        noise = self._noise(rng)
        # Where each key comes first; num_pairs where it does not come.
        first = np.full((BLOCK, self.num_keys), self.num_pairs)
        rows, places = np.nonzero(~noise)
        np.minimum.at(first, (rows, keys[rows, places]), places)
        probe = np.where(first < self.num_pairs, rng.random(first.shape), -1.0).argmax(axis=1)

        pairs = np.empty((BLOCK, self.num_pairs + 1, 2), dtype=np.int32)
        pairs[..., 0] = np.column_stack([keys, probe])
        pairs[..., 1] = np.take_along_axis(values, pairs[..., 0], axis=1)
        pairs[:, :-1][noise] = rng.integers(self.first_noise, self.vocab_size, size=(noise.sum(), 2)) if noise.any() else 0
        again = ~noise & (np.take_along_axis(first, keys, axis=1) < np.arange(self.num_pairs))
        asks = np.full((BLOCK, self.seq_len - 1), split == "train")
        asks[:, :-1:2] |= again
        asks[:, -1] = True
        return pairs.reshape(BLOCK, self.seq_len), asks

    def _noise(self, rng: np.random.Generator) -> np.ndarray:
        """Which pairs noise replaces [BLOCK, num_pairs]."""
        noise = np.zeros((BLOCK, self.num_pairs + 1), dtype=bool)
        if self.settings.frac_noise:
            noise = rng.random(noise.shape) < self.settings.frac_noise
            noise[np.arange(BLOCK), rng.integers(self.num_pairs + 1, size=BLOCK)] = False
        noise = noise[:, :-1]
        noise[noise.all(axis=1), 0] = False
        return noise

    def oracle(self, batch: Batch) -> Tensor:
        """Predictions [B, T] from the tokens alone: what followed the present token when it came last.

        Right wherever validation or test asks; meaningless elsewhere.
        """
        followed = torch.zeros(len(batch.tokens), self.vocab_size, dtype=torch.int64)
        answers: list[Tensor] = []
        for t, token in enumerate(batch.tokens.unbind(1)):
            if t:
                followed.scatter_(1, batch.tokens[:, t - 1 : t], token[:, None])
            answers.append(followed.gather(1, token[:, None]))
        return torch.cat(answers, dim=1)
