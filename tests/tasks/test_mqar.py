from __future__ import annotations

import functools
import itertools
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from tasks.mqar import FILLER, MQAR
from tasks.synthetic.blocks import BLOCK
from tasks.synthetic.reachable import MOST_DRAWS, reachable
from tasks.task import IGNORE, Batch, Scored
from tests.tasks.composed import build
from tests.thinned import pairwise

ARGUMENTS = {
    "vocab_size": 64,
    "seq_len": 48,
    "num_pairs": [2, 4, 8],
    "power_a": 0.01,
    "random_non_queries": True,
    "num_validation": 90,
    "num_test": 120,
    "num_train": None,
}


def task(**changes) -> MQAR:
    return build("mqar", **(ARGUMENTS | changes))


def scored(batch: Batch, prediction: torch.Tensor) -> list[Scored]:
    return [Scored(batch, torch.ones(batch.tokens.shape), prediction)]


def values(rows, metric):
    return {row.slice.get("num_pairs"): row.value for row in rows if row.metric == metric}


@pytest.mark.parametrize("random_non_queries", [True, False])
def test_an_example_is_what_the_task_says(random_non_queries):
    made = task(random_non_queries=random_non_queries)
    for index in range(30):
        tokens, targets = made.example("train", index)
        pairs = made.settings.num_pairs[index % 3]
        keys, shown = tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2]
        assert len(set(keys)) == len(set(shown)) == pairs
        assert keys.min() >= 1 and keys.max() < 32 <= shown.min() and shown.max() < 64
        asked = np.flatnonzero(targets != IGNORE)
        assert (asked >= 2 * pairs).all() and (asked % 2 == 0).all()
        assert dict(zip(tokens[asked], targets[asked], strict=True)) == dict(zip(keys, shown, strict=True))
        rest = np.setdiff1d(np.arange(2 * pairs, 48), asked)
        assert (tokens[rest] == FILLER).all() != random_non_queries


def test_a_bounded_training_split_is_the_beginning_of_the_one_without_end():
    indices = [299, 0, 257, 3, 3, 31]
    endless, bounded = task().batch("train", indices), task(num_train=300).batch("train", indices)
    assert torch.equal(endless.tokens, bounded.tokens) and torch.equal(endless.targets, bounded.targets)
    assert endless.slices == bounded.slices
    assert task(num_train=300).num_examples("train") == 300
    with pytest.raises(IndexError):
        task(num_train=300).batch("train", [300])


def test_threads_that_ask_for_one_block_draw_it_once(monkeypatch):
    drawn = []
    original = MQAR._draw_block

    def draw(self, split, stream, block):
        drawn.append((split, stream, block))
        return original(self, split, stream, block)

    monkeypatch.setattr(MQAR, "_draw_block", draw)
    made = task()
    with ThreadPoolExecutor(8) as pool:
        batches = list(pool.map(lambda _: made.batch("train", range(3 * BLOCK, 3 * BLOCK + 30)), range(8)))
    assert len(drawn) == len(set(drawn)) and all(torch.equal(x.tokens, batches[0].tokens) for x in batches)


@pytest.mark.parametrize("changes", [{"seed": 1}, {"power_a": 1.0}, {"vocab_size": 66}])
def test_another_configuration_gives_other_examples(changes):
    first, second = (made.batch("train", range(50)).tokens for made in (task(), task(**changes)))
    assert not (first == second).all()


def test_examples_differ_within_a_split():
    tokens = task().batch("train", range(3 * BLOCK * 2)).tokens
    assert len(tokens.unique(dim=0)) == len(tokens)


def test_no_list_of_pairs_is_in_two_splits_under_any_seed():
    """So few lists are possible here, 3 * 4, that without the rule every split would hold all of them."""
    lists = {
        split: {
            tuple(tokens[:2].tolist())
            for seed in range(3)
            for tokens in task(vocab_size=8, seq_len=8, num_pairs=[1], seed=seed).batch(split, range(90)).tokens
        }
        for split in MQAR.splits
    }
    assert sum(map(len, lists.values())) == len(set.union(*lists.values())) == 12
    assert all(lists.values())


def test_a_vocabulary_that_leaves_a_split_without_examples_is_refused():
    with pytest.raises(ValueError, match="task.vocab_size=4 is too small"):
        task(vocab_size=4, seq_len=8, num_pairs=[1]).check()


def test_weights_of_slots_are_those_of_the_power_law():
    made = task(num_pairs=[1], seq_len=12, power_a=0.5)
    targets = made.batch("train", range(4000)).targets
    frequency = (targets != IGNORE).double().mean(0)[2::2]
    weights = torch.arange(1, 6).double() ** -0.5
    assert frequency.tolist() == pytest.approx((weights / weights.sum()).tolist(), abs=0.03)


@pytest.mark.parametrize("random_non_queries", [True, False])
def test_oracle_scores_one_and_guessing_scores_chance(random_non_queries):
    made = task(random_non_queries=random_non_queries, num_test=3000)
    batch = made.batch("test", range(3000))
    exact = made.measure("test", scored(batch, made.oracle(batch)))
    assert set(values(exact, "accuracy").items()) == {(None, 1.0), (2, 1.0), (4, 1.0), (8, 1.0)}
    pairs = torch.tensor(batch.slices["num_pairs"])[:, None]
    place = 2 * (torch.rand(batch.tokens.shape, generator=torch.Generator().manual_seed(0)) * pairs).long() + 1
    guessed = values(made.measure("test", scored(batch, batch.tokens.gather(1, place))), "accuracy")
    chance = values(made.references("test", reach=None), "chance")
    assert chance == {2: 1 / 2, 4: 1 / 4, 8: 1 / 8}
    assert {k: guessed[k] for k in chance} == pytest.approx(chance, abs=0.03)


def test_accuracy_is_a_mean_over_examples_by_hand():
    made = task(num_pairs=[2, 4])
    batch = made.batch("validation", [0, 1])
    prediction = batch.targets.clone()
    prediction[0, (batch.targets[0] != IGNORE).nonzero()[0]] += 1
    nll = torch.where(batch.targets == IGNORE, torch.nan, 1.0)
    nll[1] *= 3
    rows = made.measure("validation", [Scored(batch, nll, prediction)])
    assert values(rows, "accuracy") == {None: 0.75, 2: 0.5, 4: 1.0}
    assert values(rows, "nll") == {None: 2.0, 2: 1.0, 4: 3.0}
    assert rows[0].examples == (0.5, 1.0) and rows[0].count == 2


def every_example(vocab_size, seq_len, pairs, power_a, filler):
    """All examples there are, with their probabilities; of other places' second tokens, which say nothing, one."""
    half, slots = vocab_size // 2, seq_len // 2 - pairs
    weights = np.arange(1, slots + 1) ** (power_a - 1.0)
    keys, values = (itertools.permutations(ids, pairs) for ids in (range(1, half), range(half, vocab_size)))
    for k, v, order in itertools.product(keys, values, itertools.permutations(range(slots), pairs)):
        drawn = weights[list(order)]
        probability = np.prod(drawn / (weights.sum() - drawn.cumsum() + drawn))
        free = [2 * (pairs + slot) for slot in range(slots) if slot not in order]
        for rest in itertools.product(filler, repeat=len(free)):
            tokens, targets = np.zeros(seq_len, dtype=int), np.full(seq_len, IGNORE)
            tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2], tokens[free] = k, v, rest
            for key, value, slot in zip(k, v, order, strict=True):
                tokens[2 * (pairs + slot)], targets[2 * (pairs + slot)] = key, value
            yield probability / len(filler) ** len(free), tokens, targets


@functools.cache
def all_examples(vocab_size, seq_len, pairs, power_a, random):
    return list(every_example(vocab_size, seq_len, pairs, power_a, range(vocab_size) if random else [FILLER]))


@functools.cache
def best_answer(vocab_size, seq_len, pairs, power_a, random, reach):
    """The accuracy of Bayes' answer: of all examples that look alike up to a query, the value that most of them ask for."""
    examples, seen = all_examples(vocab_size, seq_len, pairs, power_a, random), defaultdict(Counter)
    for probability, tokens, targets in examples:
        for query in np.flatnonzero(targets != IGNORE):
            seen[query, *tokens[max(query - reach, 0) : query + 1]][targets[query]] += probability / pairs
    return sum(max(values.values()) for values in seen.values()) / sum(example[0] for example in examples)


# vocab_size, seq_len, pairs, power_a and whether other places are random.
SMALL_ENOUGH = [(8, 12, 2, 0.01, False), (8, 12, 3, 2.0, False), (8, 14, 3, 0.5, False), (6, 12, 2, 0.5, True)]
SMALL_ENOUGH += [(6, 10, 2, 0.01, True)]


@pairwise(asked=SMALL_ENOUGH, reach=[0, 1, 3, 4, 5, 7, 9], most_draws=[MOST_DRAWS, 0])
def test_reachable_accuracy_is_that_of_bayes_answer(monkeypatch, asked, reach, most_draws):
    vocab_size, seq_len, pairs, power_a, random = asked
    monkeypatch.setattr("tasks.synthetic.reachable.MOST_DRAWS", most_draws)
    every = all_examples(vocab_size, seq_len, pairs, power_a, random)
    # Values under other names are as likely, and asked for alike: those in ascending order stand for all.
    examples = [example for example in every if (np.diff(example[1][1 : 2 * pairs : 2]) > 0).all()]
    tokens, targets = (torch.from_numpy(np.stack(part)) for part in list(zip(*examples, strict=True))[1:])
    batch = Batch(tokens, targets, slices={"num_pairs": [pairs] * len(tokens)})
    weights, fill = np.arange(1, seq_len) ** (power_a - 1.0), 1 / vocab_size if random else 0.0
    found = np.average(
        reachable(batch, vocab_size=vocab_size, weights=weights, fill=fill, reach=reach), weights=[p for p, *_ in examples]
    )
    expected = best_answer(vocab_size, seq_len, pairs, power_a, random, reach)
    if most_draws:
        assert found == pytest.approx(expected, abs=1e-9)
    else:
        # Told which slots the hidden pairs take: no worse, and hardly better.
        assert expected - 1e-6 < found < expected + 1e-3


def test_reachable_accuracy_of_a_split_is_that_of_all_examples():
    made = task(vocab_size=8, seq_len=12, num_pairs=[2], random_non_queries=False, num_test=4000)
    found = {reach: values(made.references("test", reach=reach), "reachable_accuracy")[2] for reach in (1, 3)}
    assert found == {1: pytest.approx(0.306, abs=0.01), 3: pytest.approx(0.627, abs=0.015)}


@pytest.mark.parametrize("reach", [1, 7, 61, 127])
def test_reachable_accuracy_of_many_pairs_takes_no_time(reach):
    made = task(vocab_size=8192, seq_len=512, num_pairs=[64], num_test=8, num_validation=1)
    (value,) = values(made.references("test", reach=reach), "reachable_accuracy").values()
    assert values(made.references("test", reach=reach - 1), "reachable_accuracy")[64] < value < 1


def test_reachable_accuracy_grows_to_one_with_sight():
    rows = [values(task().references("test", reach=reach), "reachable_accuracy") for reach in (0, 8, 16, 47, None)]
    assert all(rows[i][k] <= rows[i + 1][k] for i in range(4) for k in (2, 4, 8))
    assert rows[0] == pytest.approx(dict.fromkeys((2, 4, 8), 1 / 32)) and rows[-1] == rows[-2] == dict.fromkeys((2, 4, 8), 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_len": 47}, "task.seq_len=47 .* even numbers of at least 4 times num_pairs, here 32"),
        ({"seq_len": 30}, "task.seq_len=30 .* even numbers of at least 4 times num_pairs, here 32"),
        ({"vocab_size": 17}, "task.vocab_size=17 .* whole numbers from 18, for 8 different keys"),
        ({"num_pairs": []}, r"task.num_pairs=\[\] .* lists of whole numbers from 1, such as"),
        ({"num_pairs": 4}, "task.num_pairs=4 .* lists of whole numbers from 1, such as"),
        ({"num_pairs": [4, 0]}, r"task.num_pairs\[1\]=0 "),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        task(**changes)


def test_four_pairs_are_not_all_in_sight_of_a_short_window():
    assert build("mqar").references("test", reach=6)[1].value < 0.5


def test_a_batch_is_its_examples():
    made = task()
    indices = [7, 0, 3 * BLOCK + 1, 7, 2]
    batch = made.batch("train", indices)
    for tokens, targets, index in zip(batch.tokens.numpy(), batch.targets.numpy(), indices, strict=True):
        assert all(map(np.array_equal, (tokens, targets), made.example("train", index)))
    assert batch.slices["num_pairs"] == [made.settings.num_pairs[index % 3] for index in indices]
