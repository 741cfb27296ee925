from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

from conf.settings import RequestError
from tasks.regbench.ngram import ngram_predictions
from tasks.regbench.strings import PAD
from tasks.regbench.task import RegBench
from tasks.task import IGNORE, Batch, Scored
from tests.tasks.composed import build, settings

LETTERS, SEPARATOR = 18, 19
SMALL = {"num_train": 200, "num_validation": 200, "num_test": 200}
# So few letters and edges that many problems have a language in common.
FEW = SMALL | {"num_letters": 3, "min_alphabet": 2, "max_states": 11, "min_states": 3, "max_edges": 1, "seq_len": 64}
# On 100 problems of the published data, letter by letter: shares of legal letters.
PUBLISHED_FLOORS = {"ngram1_accuracy": 0.479, "ngram2_accuracy": 0.832, "ngram3_accuracy": 0.935, "ngram4_accuracy": 0.953}


def task(**changes) -> RegBench:
    return build("regbench", **(SMALL | changes))


def automaton(made: RegBench, split: str, i: int) -> list[dict[int, int]]:
    letters, targets, *_ = made.example(split, i)
    return [{a: s for a, s in zip(*row, strict=True) if a} for row in zip(letters.tolist(), targets.tolist(), strict=True)]


def strings(tokens: list[int]) -> list[list[int]]:
    """What stands between separators, without the padding."""
    found: list[list[int]] = [[]]
    for token in [token for token in tokens if token != PAD]:
        found = [*found, []] if token == SEPARATOR else [*found[:-1], [*found[-1], token]]
    return found


def legal(automaton: list[dict[int, int]], string: list[int]) -> list[list[int]]:
    """The letters that may stand at every place of a string. Raises KeyError where the string can't be walked."""
    state, found = 0, []
    for letter in string:
        found.append(list(automaton[state]))
        state = automaton[state][letter]
    return found


def scored(batch: Batch, prediction: torch.Tensor, loss: float = 1.0) -> list[Scored]:
    return [Scored(batch, torch.full(batch.tokens.shape, loss), prediction)]


def values(rows, metric, **place):
    return [row.value for row in rows if row.metric == metric and row.slice == place]


@pytest.mark.parametrize("split", RegBench.splits)
def test_every_string_can_be_walked_and_what_is_permitted_are_the_letters_of_its_state(split):
    made = task()
    batch = made.batch(split, range(40))
    assert batch.permitted is not None
    for i in range(40):
        tokens = batch.tokens[i].tolist()
        held = [token for token in tokens if token != PAD]
        assert tokens == held + [PAD] * (960 - len(held)) and held[-1] != SEPARATOR
        states = automaton(made, split, i)
        expected: list[list[int]] = []
        for string in strings(tokens):
            assert 1 <= len(string) <= 49
            expected += [*legal(states, string), []]
        assert 10 <= len(strings(tokens)) <= 19
        # The target at a token, and what is permitted there, belong to the token after it.
        bits = [sum(1 << letter for letter in letters) for letters in expected[1:]] + [0] * (961 - len(expected))
        assert batch.permitted[i].tolist() == bits
        after = [*tokens[1:], PAD]
        assert batch.targets[i].tolist() == [token if each else IGNORE for token, each in zip(after, bits, strict=True)]
        assert batch.slices["states"][i] == sum(map(bool, states))


def test_strings_are_as_many_and_as_long_as_published():
    found = [strings(tokens) for tokens in task(num_train=1500).batch("train", range(1500)).tokens.tolist()]
    assert sorted(Counter(map(len, found))) == list(range(10, 20))
    lengths = np.array([len(string) for each in found for string in each])
    assert np.unique(lengths).tolist() == list(range(1, 50))
    assert lengths.mean() == pytest.approx(25, abs=4 * math.sqrt(200 / len(lengths)))
    assert np.mean([len(each) for each in found]) == pytest.approx(14.5, abs=4 * math.sqrt(8.25 / 1500))


def test_every_legal_letter_is_as_likely_as_the_others():
    batch = task(num_train=1000).batch("train", range(1000))
    permitted, targets = batch.permitted[batch.asked].numpy(), batch.targets[batch.asked].numpy()
    for degree in (2, 3):
        mine = np.bitwise_count(permitted) == degree
        # How many legal letters are below the one that came.
        below = np.bitwise_count(permitted[mine] & ((np.int64(1) << targets[mine]) - 1))
        assert np.bincount(below) / mine.sum() == pytest.approx([1 / degree] * degree, abs=4 / math.sqrt(mine.sum()))


def test_no_two_splits_have_a_language_in_common_under_any_seed():
    """Without the rule these 200 examples of each split would share many: within a split most are repeated."""
    languages: dict[str, set[bytes]] = defaultdict(set)
    for seed in range(3):
        made = task(seed=seed, **FEW)
        for split in made.splits:
            drawn = made.drawn(split, range(200))
            languages[split] |= set(map(bytes, made.marks(drawn, 0)))
    assert sum(map(len, languages.values())) == len(set.union(*languages.values()))
    assert all(10 < len(each) < 400 for each in languages.values())


def test_few_problems_of_a_split_have_the_language_of_another():
    made = task(num_train=5000)
    drawn = made.drawn("train", range(5000))
    repeated = Counter(map(bytes, made.marks(drawn, 0)))
    assert 0.003 < 1 - len(repeated) / 5000 < 0.01
    states = (drawn[0][:, :, 0] > 0).sum(1)
    often = [n for n, mark in zip(states.tolist(), map(bytes, made.marks(drawn, 0)), strict=True) if repeated[mark] > 1]
    assert max(often) <= 3


def test_the_smallest_languages_are_in_every_split():
    """A hash that knew too little of them would give all to one."""
    made = task(num_train=1500, num_validation=1500, num_test=1500)
    states = [np.array(made.batch(split, range(1500)).slices["states"]) for split in made.splits]
    assert all((each == 1).any() and 0.01 < (each < 3).mean() < 0.035 for each in states)


def test_a_longer_problem_is_cut_and_otherwise_the_same():
    whole, cut = (task(seq_len=length).batch("test", range(50)) for length in (960, 200))
    assert torch.equal(whole.tokens[:, :200], cut.tokens) and torch.equal(whole.targets[:, :199], cut.targets[:, :199])
    assert torch.equal(whole.permitted[:, :199], cut.permitted[:, :199])
    assert (cut.targets[:, 199] == IGNORE).all() and (whole.targets[:, 199] != IGNORE).any()


def test_any_legal_letter_is_right_and_nothing_else():
    made = task()
    batch = made.batch("validation", range(20))
    for token in range(20):
        right = made.right(batch, torch.full_like(batch.targets, token))
        expected = [(bits >> token & 1) == 1 for bits in batch.permitted[batch.asked].tolist()]
        assert right[batch.asked].tolist() == expected
        assert any(expected) == (token not in (PAD, SEPARATOR))
    assert not made.right(batch, torch.full_like(batch.targets, IGNORE)).any()


def test_scores_by_hand():
    made = task()
    batch = made.batch("test", range(3))
    oracle, asked = made.oracle(batch), batch.asked
    rows = made.measure("test", scored(batch, oracle, loss=0.5))
    assert values(rows, "accuracy") == values(rows, "next_token_accuracy") == values(rows, "exact_match") == [1.0]
    assert values(rows, "nll") == [0.5]
    # Another legal letter wherever there is one, and a separator at every place of the second string.
    other = oracle.clone()
    for i, t in asked.nonzero().tolist():
        others = [bit for bit in range(20) if batch.permitted[i, t] >> bit & 1 and bit != oracle[i, t]]
        other[i, t] = others[0] if others else oracle[i, t]
    second = asked & ((batch.tokens == SEPARATOR).cumsum(1) == 1)
    rows = made.measure("test", scored(batch, torch.where(second, SEPARATOR, other)))
    number = asked.sum().item()
    assert values(rows, "accuracy") == [pytest.approx(1 - second.sum().item() / number)]
    alone = (other == oracle) & asked & ~second
    assert values(rows, "next_token_accuracy") == [pytest.approx(alone.sum().item() / number)]
    assert values(rows, "exact_match") == [0.0]
    assert [values(rows, "accuracy", string=n) for n in (1, 2, 3)] == [[1.0], [0.0], [1.0]]
    assert {row.slice["states"] for row in rows if "states" in row.slice} == set(batch.slices["states"])


@pytest.mark.parametrize("seq_len", [960, 20])
def test_floors_by_hand(seq_len):
    """A short context does not show all letters that are legal."""
    made = task(num_validation=30, seq_len=seq_len)
    batch = made.batch("validation", range(30))
    rows = made.references("validation", reach=None)
    chance, entropy = [], []
    for i in range(30):
        asked = batch.asked[i]
        answers = set(batch.targets[i][asked].tolist())
        for bits in batch.permitted[i][asked].tolist():
            permitted = {bit for bit in range(64) if bits >> bit & 1}
            chance.append(len(permitted & answers) / len(answers))
            entropy.append(math.log(len(permitted)))
    assert values(rows, "chance") == [pytest.approx(np.mean(chance), rel=1e-12)]
    assert values(rows, "entropy_nll") == [pytest.approx(np.mean(entropy), rel=1e-12)]


def counted(tokens: list[int], order: int) -> list[int]:
    """What `ngram_predictions` says of one problem, letter by letter, 0 where nothing is asked."""
    seen: dict[tuple[int, ...], Counter] = defaultdict(Counter)
    answers, past = [], [SEPARATOR] * 3
    for token in tokens:
        if token == PAD:
            break
        contexts = [tuple(past[len(past) - k :]) for k in range(order)]
        if token == SEPARATOR:
            answers.append(0)
            past = [SEPARATOR] * 3
            continue
        known = [seen[context] for context in contexts if seen[context]]
        answers.append(min(known[-1], key=lambda letter: (-known[-1][letter], letter)) if known else 0)
        for context in contexts:
            seen[context][token] += 1
        past.append(token)
    return answers[1:]


def test_counting_says_what_counting_one_by_one_says():
    batch = task().batch("test", range(25))
    found = ngram_predictions(batch.tokens.numpy(), separator=SEPARATOR, pad=PAD, most=4)
    for i, tokens in enumerate(batch.tokens.tolist()):
        asked = batch.asked[i].numpy()
        for order in (1, 2, 3, 4):
            answers = np.array(counted(tokens, order))
            assert found[order - 1, i][asked].tolist() == answers[asked[: len(answers)]].tolist()


def test_counting_scores_what_it_scores_on_the_published_data():
    """On 500 problems here and 100 there; a problem's share of legal letters has these standard deviations."""
    deviations = dict(zip(PUBLISHED_FLOORS, (0.19, 0.11, 0.05, 0.035), strict=True))
    rows = task(num_test=500).references("test", reach=None)
    for metric, published in PUBLISHED_FLOORS.items():
        assert values(rows, metric) == [pytest.approx(published, abs=2.5 * deviations[metric] * math.sqrt(1 / 500 + 1 / 100))]
        by_states = [row for row in rows if row.metric == metric and row.slice]
        assert sum(row.count for row in by_states) == 500
    assert not {row.metric for row in task().references("train", reach=None)} & set(PUBLISHED_FLOORS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_alphabet": 19}, "task.min_alphabet=19 is out of range, permitted are whole numbers up to num_letters, here 18"),
        ({"min_states": 13}, "task.min_states=13 .* up to max_states, here 12"),
        ({"max_edges": 4}, "task.max_edges=4 .* up to min_alphabet and min_states - 1, here 3"),
        ({"max_edges": 3, "min_alphabet": 2}, "task.max_edges=3 .* here 2"),
        ({"min_strings": 20}, "task.min_strings=20 .* up to max_strings, here 19"),
        ({"num_letters": 2, "min_alphabet": 2, "max_edges": 2, "max_states": 16}, "task.max_states=16 .* from 17, for 2 letters"),
        ({"num_letters": 4, "max_states": 8}, "task.max_states=8 .* from 9, for 4 letters"),
        ({"max_strings": 4096, "max_string_len": 16}, "task.max_string_len=16 .* up to 15, for 4096 strings"),
        ({"num_letters": 62}, "task.num_letters=62 .* 1 to 61"),
    ],
)
def test_settings_that_no_problem_can_have_are_refused(changes, message):
    with pytest.raises(RequestError, match=message.replace("1 to 61", "61")):
        settings("regbench", **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_letters": 2, "min_alphabet": 1, "max_edges": 1, "min_states": 2, "max_states": 17},
        {"num_letters": 61, "min_alphabet": 61, "max_edges": 3, "min_states": 4, "max_states": 4},
        {"min_states": 64, "max_states": 64},
        {"min_strings": 2, "max_strings": 2, "max_string_len": 1, "seq_len": 3},
        {"max_strings": 4096, "max_string_len": 15, "num_train": 1, "num_validation": 1, "num_test": 1},
    ],
)
def test_settings_at_their_ends_give_problems_with_right_answers(changes):
    made = task(**changes)
    made.check()
    for split in made.splits[1:]:
        batch = made.batch(split, range(made.num_examples(split)))
        assert batch.asked.any(1).all() and batch.tokens.max() < made.vocab_size
        rows = [*made.measure(split, scored(batch, made.oracle(batch))), *made.references(split, reach=None)]
        assert values(rows, "accuracy") == [1.0] and all(math.isfinite(row.value) for row in rows)
