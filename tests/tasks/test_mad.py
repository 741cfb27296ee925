from __future__ import annotations

import itertools
import math
import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tasks.mad.motifs import ABSENT, draw_motifs, first_columns
from tasks.task import IGNORE, Batch, Encoded, Task
from tests.tasks.composed import build

RECALL, NOISY, FUZZY = "mad_in_context_recall", "mad_noisy_recall", "mad_fuzzy_recall"
COPYING, COMPRESSION, MEMORIZATION = "mad_selective_copying", "mad_compression", "mad_memorization"
TRAIN = {"num_train": [6400, 3200, 1600, 800]}
LONG = {"seq_len": [256, 512, 1024]}
AXES: dict[str, dict[str, list[Any]]] = {
    RECALL: {"vocab_size": [32, 64, 128], **LONG, **TRAIN},
    NOISY: {"vocab_size": [48, 80, 144], **LONG, **TRAIN, "frac_noise": [0.4, 0.6, 0.8]},
    FUZZY: {"vocab_size": [32, 64, 128], **LONG, **TRAIN},
    COPYING: {"vocab_size": [32, 64, 128], "seq_len": [512, 1024], **TRAIN, "num_tokens_to_copy": [32, 64, 96]},
    COMPRESSION: {"vocab_size": [32, 64, 128], "seq_len": [64, 128, 256], **TRAIN},
    MEMORIZATION: {"vocab_size": [512, 1024, 2048, 4096, 8192]},
}
# Test examples of mad-lab @0f49a45 under another seed: the mean number of targets an example, and the mean over examples of
# the mean position of a target, each with its standard error.
MEASURED = [
    (RECALL, {}, (56.002, 0.001), (70.006, 0.012)),
    (RECALL, {"vocab_size": 128}, (23.723, 0.056), (82.181, 0.102)),
    (RECALL, {"seq_len": 1024}, (504.0, 0.0), (518.887, 0.003)),
    (NOISY, {}, (43.627, 0.071), (71.644, 0.057)),
    (NOISY, {"vocab_size": 144}, (16.470, 0.064), (83.535, 0.140)),
    (NOISY, {"frac_noise": 0.8}, (7.786, 0.061), (85.848, 0.256)),
    (NOISY, {"seq_len": 1024}, (402.178, 0.387), (520.983, 0.297)),
    (FUZZY, {}, (4.361, 0.030), (108.737, 0.218)),
    (FUZZY, {"vocab_size": 32}, (2.183, 0.024), (124.414, 0.181)),
    (FUZZY, {"vocab_size": 64}, (2.070, 0.063), (126.121, 0.253)),
    (FUZZY, {"seq_len": 1024}, (147.674, 0.472), (661.153, 1.053)),
]
# Standard errors that a mean may be away from what it estimates; the seeds are fixed.
ERRORS = 4


def settings_of(name: str) -> Iterator[dict[str, Any]]:
    """The changes of every setting of the benchmark to the baseline."""
    yield {}
    yield from ({key: value} for key, values in AXES[name].items() for value in values)


ALL = [(name, changes) for name in AXES for changes in settings_of(name)]


def close(values: np.ndarray, expected: float, error: float = 0.0) -> bool:
    """Whether the mean of independent values is what was expected, which has itself a standard error."""
    allowed = ERRORS * math.hypot(values.std() / math.sqrt(len(values)), error)
    return bool(abs(values.mean() - expected) <= allowed + 1e-9)


def drawn(name: str, count: int, split: str = "test", **changes: Any) -> Batch:
    endless = {"num_train": None, "num_test": count, "num_validation": count}
    return build(name, **(endless | changes)).batch(split, range(count))


def counts_of(batch: Batch) -> np.ndarray:
    return batch.asked.sum(1).numpy()


def test_the_benchmark_has_66_settings():
    sizes = {name: len(list(settings_of(name))) for name in AXES}
    assert sizes == {RECALL: 11, NOISY: 14, FUZZY: 11, COPYING: 13, COMPRESSION: 11, MEMORIZATION: 6} and len(ALL) == 66


@pytest.mark.parametrize(("name", "changes"), ALL)
def test_every_setting_of_the_benchmark_is_permitted_and_its_questions_have_answers(name, changes):
    made = build(name, **changes)
    assert (made.num_examples("test"), made.num_examples("validation")) == (1280, 1280)
    assert made.num_examples("train") == changes.get("num_train", 256 if name == MEMORIZATION else 12_800)
    assert made.version == 1
    batch = made.batch("test", range(12))
    assert batch.tokens.shape == (12, made.seq_len - (name in (RECALL, NOISY)))
    assert batch.tokens.min() >= 0 and batch.tokens.max() < made.vocab_size == made.settings.vocab_size
    assert made.oracle(batch)[batch.asked].tolist() == batch.targets[batch.asked].tolist() and batch.asked.any(1).all()


@pytest.mark.parametrize(("name", "changes", "asked", "position"), MEASURED)
def test_as_much_is_asked_as_in_mad_lab_and_at_the_same_places(name, changes, asked, position):
    batch = drawn(name, 1280, **changes)
    places = np.array([np.flatnonzero(row).mean() for row in batch.asked.numpy()])
    assert close(counts_of(batch), *asked) and close(places, *position)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [(RECALL, 56, 57), (NOISY, 30, 56), (FUZZY, 1, 20), (COPYING, 16, 16), (COMPRESSION, 32, 32), (MEMORIZATION, 16, 16)],
)
def test_the_range_of_questions_an_example_at_the_baseline(name, low, high):
    counts = counts_of(drawn(name, 1280))
    assert low <= counts.min() and counts.max() <= high


@pytest.mark.parametrize("frac_noise", [0.2, 0.4, 0.6, 0.8])
def test_the_number_of_questions_of_recall_follows_from_its_definition(frac_noise):
    """63 pairs, one of 64 places never noise: the pairs that are none, less the different keys among 8, and the probe."""
    counts = counts_of(drawn(NOISY, 2560, frac_noise=frac_noise))
    shown = 1 - frac_noise
    pairs = 63 * shown + frac_noise * 63 / 64
    absent = (1 - shown / 8) ** 63 / 64 + (1 - shown / 8) ** 62 * 7 / 8 * 63 / 64
    assert close(counts, pairs - 8 * (1 - absent) + 1)


def asked_again(pairs: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[int]:
    """The targets of pairs, one after another: the tokens of a value whose key has come before."""
    targets, seen = [], set()
    for key, value in pairs:
        targets += [IGNORE] * len(key) + (list(value) if key in seen else [IGNORE] * len(value))
        seen.add(key)
    return targets


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize(("frac_noise", "vocab_size"), [(0.0, 32), (0.3, 32), (0.95, 20)])
def test_an_example_of_recall_is_what_the_task_says(split, frac_noise, vocab_size):
    batch = drawn(NOISY, 300, split, frac_noise=frac_noise, vocab_size=vocab_size, seq_len=40)
    half, keys = (vocab_size - 16) // 2, Counter()
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        whole = [*tokens, targets[-1]]
        pairs = [((whole[i],), (whole[i + 1],)) for i in range(0, 40, 2)]
        shown = {key: value for key, value in pairs if key[0] < half}
        for key, value in pairs:
            if key[0] < half:
                assert shown[key] == value and half <= value[0] < 2 * half
            else:
                assert all(2 * half <= token < vocab_size for token in key + value) and frac_noise
        assert pairs[-1][0] in {key for key, _ in pairs[:-1] if key[0] < half}
        noise = iter(range(-40, 0))  # keys of their own, which never come again
        again = asked_again([(key if key[0] < half else (next(noise),), value) for key, value in pairs])
        assert targets == (whole[1:] if split == "train" else again[1:])
        keys.update(key for (key,), _ in pairs[:-1])
    assert set(keys) >= set(range(half))


def test_a_share_of_pairs_is_noise():
    tokens = drawn(NOISY, 1280, frac_noise=0.6).tokens.numpy()
    noise = tokens[:, :-1] >= 16
    assert close(noise[:, ::2].mean(1), 0.6 * 63 / 64) and (noise[:, ::2] == noise[:, 1::2]).all()
    # One of the 64 places is spared, and the last of them is none.
    assert all(close(column, 0.6 * 63 / 64) for column in noise[:, ::2].T)


@pytest.mark.parametrize(("name", "values"), [(RECALL, range(8, 16)), (NOISY, range(8, 16))])
def test_the_last_answer_is_uniform_among_all_values(name, values):
    answers = drawn(name, 2560).targets[:, -1].numpy()
    assert set(answers) == set(values) and all(close(answers == value, 1 / 8) for value in values)


def test_the_probe_is_uniform_among_the_keys_that_came():
    """At 64 keys a key that came often is asked no more often than one that came once."""
    tokens = drawn(RECALL, 2560, vocab_size=128).tokens.numpy()
    often = np.array([np.mean(row[:-1:2] == row[-1]) for row in tokens])
    expected = np.array([1 / len(set(row[:-1:2])) for row in tokens])
    assert close(often - expected, 0.0)


def parsed(tokens: list[int], num_keys: int, padding: int) -> tuple[int, list[tuple[tuple[int, ...], tuple[int, ...]]]]:
    """The padding's length, and the pairs of a whole sequence of fuzzy recall."""
    length = sum(token == padding for token in tokens)
    runs = [tuple(run) for _, run in itertools.groupby(tokens[length:], lambda token: token < num_keys)]
    return length, list(zip(runs[::2], runs[1::2], strict=True))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("changes", [{}, {"vocab_size": 9, "k_motif_size": 2, "v_motif_size": 4, "seq_len": 60}])
def test_an_example_of_fuzzy_recall_is_what_the_task_says(split, changes):
    made = build(FUZZY, **changes)
    known, padding = made.settings, made.vocab_size - 1
    longest, sizes = known.k_motif_size + known.v_motif_size, Counter()
    batch = made.batch(split, range(300))
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        whole = [*tokens, targets[-1]]
        length, pairs = parsed(whole, padding // 2, padding)
        values: dict[tuple[int, ...], tuple[int, ...]] = {}
        for key, value in pairs:
            assert values.setdefault(key, value) == value
            assert len(set(key)) == len(key) and len(set(value)) == len(value) <= known.v_motif_size
            sizes[len(key)] += 1
        probe = sum(map(len, pairs[-1]))
        # The last pair before the probe begins where it and the probe surely fit, and no further pair would.
        end = len(whole) - length - probe
        assert end - sum(map(len, pairs[-2])) < known.seq_len - probe - longest <= end < known.seq_len - probe
        again = [IGNORE] * length + asked_again(pairs)
        assert targets == (whole[1:] if split == "train" else again[1:])
        assert split == "train" or pairs[-1][0] in [key for key, _ in pairs[:-1]]
    assert set(sizes) == (set(range(1, known.k_motif_size + 1)) if split == "train" else {known.k_motif_size})


def reference(rng: random.Random, training: bool, vocab_size: int, seq_len: int) -> list[int]:
    """One sequence of fuzzy recall of motifs up to 3 tokens, written pair by pair."""

    def motif(ids: range, size: int) -> tuple[int, ...]:
        return tuple(rng.sample(ids, size))

    def pair() -> tuple[tuple[int, ...], tuple[int, ...]]:
        keys, values = range((vocab_size - 1) // 2), range((vocab_size - 1) // 2, vocab_size - 1)
        return motif(keys, rng.randint(1, 3) if training else 3), motif(values, rng.randint(1, 3))

    probe = pair()
    size = sum(map(len, probe))
    place, values, pairs = rng.randrange(seq_len - 2 * size), dict([probe]), []
    while (begin := sum(len(key) + len(value) for key, value in pairs)) < seq_len - size - 6:
        if begin >= place and probe not in pairs:
            pairs.append(probe)
        else:
            key, value = pair()
            pairs.append((key, values.setdefault(key, value)))
    if not training and probe not in pairs:
        # As if the place had been at the last pair.
        pairs.insert(len(pairs) - 1, probe)
        if sum(len(key) + len(value) for key, value in pairs[:-1]) >= seq_len - size - 6:
            pairs.pop()
    tokens = [token for each in [*pairs, probe] for motif in each for token in motif]
    return [vocab_size - 1] * (seq_len + 1 - len(tokens)) + tokens


def facts(whole: list[int], vocab_size: int, length: int) -> list[float]:
    """Numbers about a whole sequence of fuzzy recall: of its padding, its pairs, its probe, its questions and its motifs."""
    padding, pairs = parsed(whole, (vocab_size - 1) // 2, vocab_size - 1)
    keys = [key for key, _ in pairs]
    probe = keys.index(keys[-1])
    begin = sum(len(key) + len(value) for key, value in pairs[:probe])
    repeated = sum(target != IGNORE for target in asked_again(pairs))
    sizes = [np.mean([len(part) == 1 for part in parts]) for parts in zip(*pairs, strict=True)]
    keys_and_probe = len(keys), len(set(keys)), keys.count(keys[-1]), begin, begin > length / 2
    return [padding, *keys_and_probe, repeated, *sizes, len(pairs[-1][1])]


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(("vocab_size", "seq_len"), [(9, 31), (16, 64)])
def test_fuzzy_recall_is_distributed_as_when_it_is_written_pair_by_pair(split, vocab_size, seq_len):
    batch = drawn(FUZZY, 2000, split, vocab_size=vocab_size, seq_len=seq_len)
    whole = torch.cat([batch.tokens, batch.targets[:, -1:]], dim=1).tolist()
    rng = random.Random(0)
    written = [reference(rng, split == "train", vocab_size, seq_len) for _ in whole]
    ours, theirs = (np.array([facts(each, vocab_size, seq_len) for each in sequences]) for sequences in (whole, written))
    for mine, other in zip(ours.T, theirs.T, strict=True):
        assert close(mine, other.mean(), other.std() / math.sqrt(len(other)))


def test_motifs_are_all_ordered_choices_of_different_numbers_equally_often():
    sizes = np.repeat([[1, 2, 3, 4]], 6000, axis=0)
    drawn = draw_motifs(np.random.default_rng(0), sizes, num_tokens=5, most=4)
    for column in range(4):
        motifs = [tuple(token for token in motif if token != ABSENT) for motif in drawn[:, :, column].T.tolist()]
        expected = list(itertools.permutations(range(5), column + 1))
        assert set(motifs) == set(expected) and (drawn[column + 1 :, :, column] == ABSENT).all()
        statistic = sum((motifs.count(each) - 6000 / len(expected)) ** 2 for each in expected) * len(expected) / 6000
        # The mean of chi-square is its degrees of freedom, its variance twice as much.
        assert abs(statistic - len(expected) + 1) < ERRORS * math.sqrt(2 * len(expected))


def test_a_motif_is_found_where_it_comes_first():
    sizes = np.random.default_rng(1).integers(1, 4, size=(50, 40))
    motifs = draw_motifs(np.random.default_rng(2), sizes, num_tokens=4, most=3)
    rows = [[tuple(motif) for motif in row.T.tolist()] for row in np.moveaxis(motifs, 1, 0)]
    assert first_columns(motifs).tolist() == [[row.index(motif) for motif in row] for row in rows]


def test_fuzzy_recall_at_128_ids_takes_less_than_a_millisecond_an_example():
    made = build(FUZZY, vocab_size=128, num_train=1280)
    begun = time.process_time()
    made.batch("train", range(1280))
    assert time.process_time() - begun < 1.28


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("changes", [{}, {"num_tokens_to_copy": 96}, {"vocab_size": 5, "seq_len": 30, "num_tokens_to_copy": 9}])
def test_an_example_of_selective_copying_is_what_the_task_says(split, changes):
    made = build(COPYING, **changes)
    batch, number, blank = made.batch(split, range(100)), made.settings.num_tokens_to_copy, made.vocab_size - 2
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        before, behind = tokens[: -number - 1], tokens[-number:]
        copied = [token for token in before if token != blank]
        assert len(copied) == number and max(copied) < blank and before[-1] != blank
        assert tokens[-number - 1] == blank + 1 and behind == [blank] * number
        assert targets == [IGNORE] * len(before) + [IGNORE] + copied


@pytest.mark.parametrize("number", [16, 96])
def test_each_blank_stands_before_a_uniform_one_of_the_tokens_to_copy(number):
    before = drawn(COPYING, 1280, num_tokens_to_copy=number).tokens.numpy()[:, : -number - 1]
    blanks = before.shape[1] - number
    gaps = np.diff(np.nonzero(before != 14)[1].reshape(-1, number), axis=1, prepend=-1) - 1
    assert all(close(gap, blanks / number) for gap in gaps.T)
    variance = blanks * (1 / number) * (1 - 1 / number)
    assert close(np.square(gaps - blanks / number).mean(1), variance)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_compression_asks_for_every_token_the_last_one_too(split):
    made = build(COMPRESSION)
    batch = made.batch(split, range(1280))
    assert torch.equal(batch.targets, batch.tokens) and (batch.tokens[:, -1] == 15).all()
    shares = np.stack([(batch.tokens[:, :-1] == token).double().mean(1).numpy() for token in range(15)])
    assert all(close(share, 1 / 15) for share in shares)
    assert made.interface == Encoded(16, decoder_layers=2)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_memorization_asks_for_values_of_one_map(split):
    made = build(MEMORIZATION)
    values = made.values.tolist()
    assert len(set(values)) == 127 and set(values) <= set(range(127, 255))
    batch = made.batch(split, range(256))
    assert (batch.tokens[:, 1::2] == 255).all() and not batch.asked[:, ::2].any()
    keys = batch.tokens[:, ::2]
    assert batch.targets[:, 1::2].tolist() == [[values[key] for key in row] for row in keys.tolist()]
    assert set(keys.unique().tolist()) == set(range(127))
    assert close((keys.numpy() < 64).mean(1), 64 / 127)


def test_the_map_is_mad_labs_and_depends_on_map_seed_alone():
    known = dict(zip([120, 0, 101, 119, 114, 90, 107, 6], [175, 239, 249, 185, 174, 243, 150, 142], strict=True))
    maps = [build(MEMORIZATION, seed=seed).values for seed in (0, 1)]
    assert {key: maps[0][key].item() for key in known} == known and torch.equal(*maps)
    assert not torch.equal(maps[0], build(MEMORIZATION, map_seed=1).values)


SMALL = [
    (RECALL, {"vocab_size": 4, "seq_len": 36}),
    (RECALL, {"vocab_size": 128, "seq_len": 8}),
    (NOISY, {"vocab_size": 5, "noise_vocab_size": 1, "frac_noise": 0.9, "seq_len": 36}),
    (FUZZY, {"vocab_size": 5, "k_motif_size": 1, "v_motif_size": 1, "seq_len": 37}),
    (FUZZY, {"vocab_size": 9, "k_motif_size": 4, "v_motif_size": 4, "seq_len": 49}),
    (COPYING, {"vocab_size": 4, "num_tokens_to_copy": 4, "seq_len": 12}),
    (COPYING, {"vocab_size": 10, "num_tokens_to_copy": 6, "seq_len": 14}),
    (COMPRESSION, {"vocab_size": 3, "seq_len": 5}),
    (MEMORIZATION, {"vocab_size": 9, "seq_len": 4}),
]


@pytest.mark.parametrize(("name", "changes"), SMALL)
def test_small_settings_have_examples_for_every_split_and_answers_to_all_questions(name, changes):
    tasks: list[Task] = [build(name, seed=seed, **(changes | {"num_train": 300})) for seed in range(2)]
    seen = []
    for split in tasks[0].splits:
        batches = [task.batch(split, range(300)) for task in tasks]
        seen.append({tuple(row) for batch in batches for row in batch.tokens.tolist()})
        for task, batch in zip(tasks, batches, strict=True):
            right = task.oracle(batch) == batch.targets
            assert split == "train" or right[batch.asked].all()
    assert len(set.union(*seen)) == sum(map(len, seen)) and all(seen)
    assert tasks[0].version == 1 + tasks[0].few(tasks[0].streams("test")[0])


def test_all_lists_of_a_small_setting_are_dealt_out():
    made = build(COMPRESSION, vocab_size=3, seq_len=9)
    seen = [{tuple(row) for row in made.batch(split, range(1280)).tokens.tolist()} for split in made.splits]
    assert [len(each) for each in seen] == [128, 64, 64]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (RECALL, {"seq_len": 127}, "task.seq_len=127 .* even numbers from 14,"),
        (RECALL, {"seq_len": 12}, "task.seq_len=12 .* even numbers from 14,"),
        (RECALL, {"vocab_size": 3}, "task.vocab_size=3 .* whole numbers from 4 to"),
        (RECALL, {"frac_noise": 0.2}, "task.noise_vocab_size=0 .* whole numbers above 0 with frac_noise=0.2"),
        (NOISY, {"frac_noise": 1.0}, "task.frac_noise=1"),
        (NOISY, {"vocab_size": 19}, "task.noise_vocab_size=16 .* 0 to vocab_size - 4, here 15"),
        (FUZZY, {"vocab_size": 6}, "task.vocab_size=6 .* whole numbers from 7, for motifs"),
        (FUZZY, {"seq_len": 24}, "task.seq_len=24 .* whole numbers from 25,"),
        (COPYING, {"seq_len": 33}, r"task.seq_len=33 .* whole numbers from 2 \* num_tokens_to_copy \+ 2, here 34"),
        (COPYING, {"vocab_size": 4, "num_tokens_to_copy": 1}, "task.num_tokens_to_copy=1 is too small: no example is left"),
        (COMPRESSION, {"vocab_size": 3, "seq_len": 2}, "task.seq_len=2 is too short: no example is left"),
        (MEMORIZATION, {"seq_len": 31}, "task.seq_len=31 .* even numbers"),
        (MEMORIZATION, {"vocab_size": 5, "seq_len": 2}, "task.seq_len=2 is too short: no example is left"),
    ],
)
def test_what_makes_no_task_is_refused_in_one_line(name, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(name, **changes).check()
    assert "\n" not in str(caught.value)
