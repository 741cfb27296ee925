from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch

from tasks.recall.words import Words
from tasks.synthetic.blocks import BLOCK
from tasks.task import IGNORE, Batch, Scored
from tests.tasks.composed import build

DEPO2 = {"alphabet": 3, "min_word": 5, "max_word": 7, "num_items": 12, "max_steps": 5, "seq_len": 329}


def scored(batch: Batch, prediction: torch.Tensor) -> list[Scored]:
    return [Scored(batch, torch.ones(batch.tokens.shape), prediction)]


def values(rows, metric, *names):
    return {
        tuple(row.slice[n] for n in names): row.value for row in rows if row.metric == metric and set(row.slice) == set(names)
    }


def uniform(counts: Counter, values) -> bool:
    """Whether these values, and no others, came equally often, within 4 standard errors."""
    mean = sum(counts.values()) / len(values)
    return set(counts) == set(values) and all(abs(count - mean) < 4 * math.sqrt(mean) for count in counts.values())


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_palindrome_asks_for_the_tokens_from_the_last_to_the_first(split):
    batch = build("palindrome").batch(split, range(60))
    seen = Counter()
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        text = tokens[:16]
        assert tokens == [*text, 32, *text[:0:-1]] and targets == [IGNORE] * 16 + text[::-1]
        seen.update(text)
    assert uniform(seen, range(32))


def test_a_palindrome_is_scored_by_position_in_the_answer():
    made = build("palindrome")
    batch = made.batch("validation", [0, 1])
    prediction = batch.targets.clone()
    prediction[0, 16], prediction[:, 31] = IGNORE, IGNORE
    rows = made.measure_positions("validation", scored(batch, prediction))
    by_position = values(rows, "accuracy", "position")
    assert [by_position[t,] for t in (0, 1, 14, 15)] == [0.5, 1.0, 1.0, 0.0] and len(by_position) == 16
    assert values(rows, "accuracy", "position_low", "position_high")[(8, 16)] == 7 / 8
    whole = values(made.measure("validation", scored(batch, prediction)), "accuracy")[()]
    assert whole == pytest.approx(np.mean([*by_position.values()])) and () not in values(rows, "accuracy")


@pytest.mark.parametrize(("split", "seq_len"), [("train", 256), ("test", 256), ("validation", 33)])
def test_a_needle_stands_once_in_filler_and_is_asked_for_at_the_end(split, seq_len):
    made = build("needle", seq_len=seq_len)
    batch = made.batch(split, range(300))
    places, filler = Counter(), Counter()
    for tokens, targets, depth in zip(batch.tokens.tolist(), batch.targets.tolist(), batch.slices["depth"], strict=True):
        place = tokens.index(tokens[-1])
        assert 16 <= tokens[-1] < 32 <= tokens[place + 1] < 48 and place < seq_len - 2
        others = tokens[:place] + tokens[place + 2 : -1]
        assert all(0 <= token < 16 for token in others)
        assert targets == [IGNORE] * (seq_len - 1) + [tokens[place + 1]]
        assert depth == pytest.approx(math.floor(10 * place / (seq_len - 2)) / 10)
        places[round(10 * depth)] += 1
        filler.update(others)
    assert uniform(places, range(10)) and uniform(filler, range(16))


def test_a_needle_is_drawn_again_from_a_few_numbers_however_long_its_filler():
    made = build("needle", seq_len=2**16, num_filler=2**15, num_train=100_000)
    assert sum(part.nbytes for part in made.block("train", 0, 0)) == 32 * BLOCK
    batch = made.batch("train", [70_000, 3, 70_000])
    assert torch.equal(batch.tokens[0], batch.tokens[2]) and (batch.tokens[0] == batch.tokens[1]).double().mean() < 0.01
    assert batch.tokens[:, :1000].max() > 2**14 and torch.equal(made.oracle(batch)[batch.asked], batch.targets[batch.asked])


@pytest.mark.parametrize("reach", [None, 100, 1, 0])
def test_a_needle_out_of_sight_is_guessed(reach):
    made = build("needle")
    rows = made.references("test", reach=reach)
    tokens = made.batch("test", range(1024)).tokens
    value_at = (tokens == tokens[:, -1:]).int().argmax(1) + 1
    sure = (255 - value_at <= (255 if reach is None else reach)).double()
    best = values(rows, "reachable_accuracy")
    assert best[()] == pytest.approx((sure + (1 - sure) / 16).mean().item())
    by_depth = values(rows, "reachable_accuracy", "depth")
    assert len(by_depth) == 10 and list(by_depth.values()) == sorted(by_depth.values())
    assert set(values(rows, "chance", "depth").values()) == {1 / 16}
    assert reach != 100 or (by_depth[0.0,], by_depth[0.9,]) == (1 / 16, 1.0)


def parsed(made, tokens: list[int]) -> tuple[list[tuple], list[tuple[int, tuple, int, tuple]]]:
    """The edges of an example, and its queries: k, the word, the place of <answer>, and the word behind it."""
    end = 2 * made.settings.alphabet
    words, queries, word, marks = [], [], (), []
    for place, token in enumerate(tokens):
        if 0 < token <= end:
            word = (*word, token)
            if token > made.settings.alphabet:
                words.append(word)
                word = ()
        elif token:
            marks.append((place, token, len(words)))
    (start, bos, _), *marks = marks
    assert (start, bos) == (0, end + 1) and not word
    for (_, steps, number), (place, answer, _) in zip(marks[::2], marks[1::2], strict=True):
        assert answer == end + 2
        queries.append((steps - end - 2, words[number], place, words[number + 1]))
    count = marks[0][2]
    return list(zip(words[:count:2], words[1:count:2], strict=True)), queries


@pytest.mark.parametrize("changes", [{}, DEPO2])
@pytest.mark.parametrize("split", ["train", "test"])
def test_depo_asks_for_the_word_so_many_steps_on_along_the_cycle(changes, split):
    made = build("depo", **changes)
    batch = made.batch(split, range(200))
    sizes = range(made.settings.min_word, made.settings.max_word + 1)
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        edges, queries = parsed(made, tokens)
        following, expected = dict(edges), [IGNORE] * len(tokens)
        assert len(following) == len(edges) and {len(word) for word in following} <= set(sizes)
        around = [edges[0][0]]
        while following[around[-1]] != around[0]:
            around.append(following[around[-1]])
        assert set(around) == set(following) == set(following.values())
        assert len(queries) == min(len(edges), 10) == len({word for _, word, _, _ in queries})
        for steps, word, place, found in queries:
            for _ in range(steps):
                word = following[word]
            assert word == found
            expected[place : place + len(found)] = found
        assert targets == expected
        assert tokens == tokens[: queries[-1][2] + 1 + len(queries[-1][3])] + [0] * tokens.count(0)


def test_depo_trains_on_short_cycles_too_and_tests_powers_of_two_on_the_longest():
    made = build("depo", max_steps=6, num_items=9, seq_len=91)
    counts, steps = Counter(), {"train": Counter(), "test": Counter()}
    for split in steps:
        for tokens in made.batch(split, range(12 * BLOCK if split == "train" else 512)).tokens.tolist():
            edges, queries = parsed(made, tokens)
            steps[split].update(k for k, *_ in queries)
            assert split == "train" or len(edges) == 9
            if split == "train":
                counts[len(edges)] += 1
    assert uniform(steps["train"], range(1, 7)) and uniform(steps["test"], [1, 2, 4, 6])
    weights = {n: 1 / (n + 3) for n in range(3, 10)}
    for n, weight in weights.items():
        expected = weight / sum(weights.values()) * 12 * BLOCK
        assert abs(counts[n] - expected) < 4 * math.sqrt(expected)
    assert build("depo", max_steps=32).test_steps == [1, 2, 4, 8, 16, 24, 32]
    assert build("depo", max_steps=8).test_steps == [1, 2, 4, 8]


def test_words_are_drawn_one_after_the_other_and_repetitions_thrown_away():
    """Short words run out: fewer and fewer of those that are still drawn are short."""
    words, count, different = Words.of(4, 1, 2), 4000, 12
    assert words.tokens.tolist()[:4] == [[5, 0], [6, 0], [7, 0], [8, 0]] and words.rates.sum() == pytest.approx(1)
    assert sorted(map(tuple, words.tokens.tolist()[4:])) == [(a, 4 + b) for a in range(1, 5) for b in range(1, 5)]
    drawn = words.draw(np.random.default_rng(0), count, different)
    assert all(len(set(row)) == different for row in drawn.tolist())
    short = (drawn < 4).mean(axis=0)
    generator, expected = random.Random(0), np.zeros(different)
    for _ in range(count):
        found: dict[tuple, None] = {}
        while len(found) < different:
            found[tuple(generator.randint(1, 4) for _ in range(generator.randint(1, 2)))] = None
        expected += np.array([len(word) == 1 for word in found]) / count
    assert np.abs(short - expected).max() < 4 * math.sqrt(0.5 / count) and expected[0] > 0.45 > 0.2 > expected[-1]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_depo_counts_a_word_as_right_where_all_its_tokens_are(split):
    made = build("depo", **DEPO2)
    batch = made.batch(split, range(60))
    prediction, generator = batch.targets.clone(), random.Random(0)
    tokens, words, by_steps, examples = [], [], {}, []
    for row, example in enumerate(batch.tokens.tolist()):
        mine = []
        for steps, _, place, found in parsed(made, example)[1]:
            wrong = [generator.random() < 0.1 for _ in found]
            for offset, each in enumerate(wrong):
                prediction[row, place + offset] += each
            tokens += wrong
            mine.append(not any(wrong))
            by_steps.setdefault(steps, []).append((mine[-1], wrong))
        words += mine
        examples.append(np.mean(mine))
    rows = made.measure(split, scored(batch, prediction))
    assert values(rows, "accuracy")[()] == pytest.approx(1 - np.mean(tokens))
    assert values(rows, "exact_match")[()] == pytest.approx(np.mean(words)) and 0.3 < np.mean(words) < 0.8
    for steps, found in by_steps.items():
        assert values(rows, "exact_match", "k")[(steps,)] == pytest.approx(np.mean([right for right, _ in found]))
        assert values(rows, "accuracy", "k")[(steps,)] == pytest.approx(1 - np.mean(sum([wrong for _, wrong in found], [])))
    counts = {row.slice["k"]: row.count for row in rows if row.metric == "exact_match" and row.slice}
    assert counts == {steps: len(found) for steps, found in by_steps.items()}
    (whole,) = (row for row in rows if row.metric == "exact_match" and not row.slice)
    # In the test all examples have equally many queries, so the mean of their shares is the share of all.
    assert whole.examples == (None if split == "validation" else pytest.approx(examples))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("palindrome", {"seq_len": 33}, "task.seq_len=33 .* even numbers"),
        ("depo", {"min_word": 3}, "task.min_word=3 .* whole numbers up to max_word, here 2"),
        ("depo", {"alphabet": 31}, "task.alphabet=31 .* make 1024 to 16384 words, not 992"),
        ("depo", {"alphabet": 128}, "task.alphabet=128 .* make 1024 to 16384 words, not 16512"),
        ("depo", {"num_items": 2551, "seq_len": 2**15}, "task.alphabet=50 .* make 2551 to 16384 words, not 2550"),
        ("depo", {"seq_len": 80}, "task.seq_len=80 .* whole numbers from 81, for all edges and queries"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(name, changes, message):
    with pytest.raises(ValueError, match=message):
        build(name, **changes)


def test_the_published_sizes_are_permitted():
    depo1 = build("depo", num_items=375, max_steps=8, seq_len=1561).batch("test", range(4))
    assert (depo1.tokens[:, 0] == 101).all()
    depo2 = build("depo", **(DEPO2 | {"num_items": 125, "max_steps": 16, "seq_len": 1911}))
    batch = depo2.batch("test", range(4))
    assert torch.equal(depo2.oracle(batch)[batch.asked], batch.targets[batch.asked])
    assert build("palindrome", seq_len=2048).batch("test", [0]).tokens.shape == (1, 2048)
