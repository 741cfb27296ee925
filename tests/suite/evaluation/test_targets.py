"""Log-likelihoods that are added up over parts of a vocabulary are those of all logits at once."""

from __future__ import annotations

import pytest
import torch

from models.backbone import language_model
from suite.evaluation import targets
from suite.evaluation.targets import Asked, answered, log_likelihoods
from tests.suite.evaluation.test_prefixes import model_of

VOCABULARY, PLACES = 23, 40


class Logits:
    """Stands for a model whose features are its logits."""

    def __init__(self, step: int) -> None:
        self.step = step

    def head_parts(self, features):
        return (part.clone() for part in features.split(self.step, dim=-1))


def logits(seed: int) -> torch.Tensor:
    """Few values, so that many are equal; some ids can't follow, which may be all of a part."""
    made = torch.randint(-4, 5, (PLACES, VOCABULARY), generator=torch.Generator().manual_seed(seed)).float() * 30
    made[::3, :7] = -torch.inf
    made[1::3, -9:] = -torch.inf
    return made


@pytest.mark.parametrize("step", [1, 5, 7, VOCABULARY])
@pytest.mark.parametrize("seed", range(4))
def test_parts_of_a_vocabulary_add_up_to_the_whole(step: int, seed: int) -> None:
    features = logits(seed)
    at, target = (each.flatten() for each in torch.meshgrid(torch.arange(PLACES), torch.arange(VOCABULARY), indexing="ij"))
    found, is_likeliest = log_likelihoods(Logits(step), features, at, target)
    expected = features.double().log_softmax(-1).flatten()
    assert torch.allclose(found.double(), expected, atol=1e-4) and is_likeliest.sum() == PLACES
    assert torch.equal(is_likeliest, (features.argmax(-1)[at] == target))


def test_a_head_in_parts_is_the_head(monkeypatch) -> None:
    monkeypatch.setattr(language_model, "PART_ELEMENTS", 10)
    model, features = model_of("gla"), torch.randn(3, 32, generator=torch.Generator().manual_seed(0)).double()
    parts = list(model.head_parts(features))
    assert [part.shape[1] for part in parts] == [64, 64, 64, 64, 1]
    assert torch.allclose(torch.cat(parts, 1), model.head(features), atol=1e-6)


@pytest.mark.parametrize("most", [1, 6, 1000])
def test_targets_of_many_batches_come_back_to_their_sequences(monkeypatch, most: int) -> None:
    monkeypatch.setattr(targets, "PLACES_AT_ONCE", most)
    features = logits(0).reshape(5, 2, 4, VOCABULARY)
    batches = [
        (batch, [Asked(10 * i + row, target, row, column) for row in (1, 0) for column in (3, 1) for target in (4, 9)])
        for i, batch in enumerate(features)
    ]
    found: dict[int, float] = {}
    for sequence, log_likelihood, _ in answered(Logits(6), [*batches, (features[0], [])]):
        found[sequence] = found.get(sequence, 0.0) + log_likelihood
    whole = features.log_softmax(-1)[..., [4, 9]][:, :, [1, 3]].sum((-1, -2))
    assert found == {10 * i + row: pytest.approx(whole[i, row].item(), abs=1e-3) for i in range(5) for row in (0, 1)}


def test_passes_of_the_head_are_full_but_for_the_last(monkeypatch) -> None:
    monkeypatch.setattr(targets, "PLACES_AT_ONCE", 6)
    model, passes = Logits(6), []
    parts = model.head_parts
    monkeypatch.setattr(model, "head_parts", lambda features: passes.append(len(features)) or parts(features))
    # Batches of 8, 5 and 3 places.
    every = logits(0).reshape(1, PLACES, VOCABULARY)
    batches = [(every, [Asked(0, 4, 0, column) for column in range(count)]) for count in (8, 5, 3)]
    assert len(list(answered(model, batches))) == 16 and passes == [6, 6, 4]


@pytest.mark.parametrize("target", [-1, VOCABULARY])
def test_a_target_outside_of_the_vocabulary_has_no_likelihood(target: int) -> None:
    with pytest.raises(IndexError, match=f"target {target} of a vocabulary of 23"):
        log_likelihoods(Logits(6), logits(0), torch.tensor([0, 1]), torch.tensor([3, target]))
