from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch

from tasks.state_tracking.groups import ORDERS, multiplication_table, permutations_of
from tasks.synthetic.blocks import BLOCK
from tasks.task import IGNORE, Batch, Scored
from tests.tasks.composed import build

SMALL = {"num_validation": 64, "num_test": 96}
PREFIXES = [("word_problem_s3", 8, 12), ("word_problem_a5", 6, 9), ("even_pairs", 20, 30)]


def scored(batch: Batch, prediction: torch.Tensor) -> list[Scored]:
    return [Scored(batch, torch.ones(batch.tokens.shape), prediction)]


def values(rows, metric, *names):
    return {
        tuple(row.slice[n] for n in names): row.value for row in rows if row.metric == metric and set(row.slice) == set(names)
    }


def questions(batch: Batch) -> list[tuple[list[int], int, int]]:
    """Per example its tokens, the only place where something is asked, and the answer."""
    found = []
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        (place,) = (t for t, target in enumerate(targets) if target != IGNORE)
        found.append((tokens, place, targets[place]))
    return found


def uniform(counts: Counter, values) -> bool:
    """Whether these values, and no others, came equally often, within 4 standard errors."""
    mean = sum(counts.values()) / len(values)
    return set(counts) == set(values) and all(abs(count - mean) < 4 * math.sqrt(mean) for count in counts.values())


def order_of(table: np.ndarray, element: int) -> int:
    power, count = element, 1
    while power:
        power, count = table[power, element], count + 1
    return count


@pytest.mark.parametrize(
    ("group", "orders"),
    [
        ("S3", {1: 1, 2: 3, 3: 2}),
        ("A5", {1: 1, 2: 15, 3: 20, 5: 24}),
        ("S5", {1: 1, 2: 25, 3: 20, 4: 30, 5: 24, 6: 20}),
        ("Z60", {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 2, 10: 4, 12: 4, 15: 8, 20: 8, 30: 8, 60: 16}),
        ("A4xZ5", {1: 1, 2: 3, 3: 8, 5: 4, 10: 12, 15: 32}),
    ],
)
def test_a_table_is_that_of_its_group(group, orders):
    """The numbers of elements of every order tell these groups from all others of their size."""
    table, elements = multiplication_table(group), permutations_of(group)
    assert table.shape == (ORDERS[group],) * 2
    everything = list(range(len(table)))
    assert table[0].tolist() == table[:, 0].tolist() == everything
    for one in (table, table.T):
        assert np.sort(one, axis=1).tolist() == [everything] * len(table)
    a, b, c = np.random.default_rng(0).integers(len(table), size=(3, 5000))
    assert (table[table[a, b], c] == table[a, table[b, c]]).all()
    assert Counter(order_of(table, each) for each in everything) == orders
    assert elements.tolist() == sorted(elements.tolist())


@pytest.mark.parametrize(("split", "length"), [("train", 32), ("validation", 32), ("test", 128)])
def test_a_word_problem_asks_where_all_points_have_gone(split, length):
    made = build("word_problem_s5")
    every = list(itertools.permutations(range(5)))
    batch = made.batch(split, range(30))
    assert batch.tokens.shape == (30, length) and batch.asked.all() and made.vocab_size == 121
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        assert (tokens[0], targets[0]) == (120, 0)
        cups = list(range(5))
        for token, target in zip(tokens[1:], targets[1:], strict=True):
            cups = [every[token][cup] for cup in cups]
            assert every[target] == tuple(cups)


def test_elements_and_products_are_uniform_at_every_position():
    batch = build("word_problem_s3").batch("train", range(16 * BLOCK))
    for ids in (batch.tokens[:, 1:], batch.targets[:, 1:]):
        shares = torch.nn.functional.one_hot(ids, 6).double().mean(0)
        assert shares.flatten().tolist() == pytest.approx([1 / 6] * 6 * 31, abs=0.025)


@pytest.mark.parametrize("split", ["train", "test"])
def test_even_pairs_asks_whether_changes_are_odd_in_number(split):
    batch = build("even_pairs").batch(split, range(50))
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        assert tokens[0] == 2 and targets[0] == 0
        text = "".join(map(str, tokens[1:]))
        for t in range(1, len(tokens)):
            pairs = Counter(text[i : i + 2] for i in range(t - 1))
            assert targets[t] == (pairs["01"] + pairs["10"]) % 2
    assert batch.tokens[:, 1:].double().mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("name", "seq_len", "test_seq_len"), PREFIXES)
def test_no_beginning_is_in_two_splits_under_any_seed(name, seq_len, test_seq_len):
    lengths = {"seq_len": seq_len, "test_seq_len": test_seq_len, **SMALL}
    seen: dict[str, set] = {}
    for seed in range(8):
        made = build(name, seed=seed, **lengths)
        for split in made.splits:
            beginnings = made.batch(split, range(2 * BLOCK)).tokens[:, :seq_len].tolist()
            seen.setdefault(split, set()).update(map(tuple, beginnings))
    assert sum(map(len, seen.values())) == len(set.union(*seen.values())) > 2000


def test_scores_by_position_by_hand():
    made = build("word_problem_s3", seq_len=12, test_seq_len=20)
    batch = made.batch("test", [0, 1])
    prediction = batch.targets.clone()
    prediction[0, 3], prediction[1, 16:] = prediction[0, 3] + 1, prediction[1, 16:] + 1
    rows = made.measure("test", scored(batch, prediction))
    assert values(rows, "accuracy")[()] == pytest.approx(35 / 40) and values(rows, "nll")[()] == 1.0
    by_position = values(rows, "accuracy", "position")
    assert by_position[(3,)] == by_position[(16,)] == 0.5 and by_position[(4,)] == 1.0
    bands = {row.slice["position_low"]: row for row in rows if row.metric == "accuracy" and "position_low" in row.slice}
    assert bands[16].examples == (1.0, 0.0) and bands[2].examples == (0.5, 1.0) and bands[16].slice["position_high"] == 20


@pytest.mark.parametrize(("reach", "expected"), [(None, 1.0), (11, (13 + 7 / 60) / 20), (0, (2 + 18 / 60) / 20)])
def test_reachable_accuracy_ends_where_the_first_element_is_out_of_sight(reach, expected):
    made = build("word_problem_a5", seq_len=12, test_seq_len=20, **SMALL)
    assert values(made.references("test", reach=reach), "reachable_accuracy")[()] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("word_problem_s3", {"seq_len": 7}, "task.seq_len=7 .* whole numbers from 8, so"),
        ("word_problem_a5", {"seq_len": 3}, "task.seq_len=3 .* whole numbers from 4, so"),
        ("even_pairs", {"seq_len": 17}, "task.seq_len=17 .* whole numbers from 18, so"),
        ("word_problem_s3", {"test_seq_len": 31}, "task.test_seq_len=31 .* whole numbers from seq_len, here 32"),
        ("word_problem_s3", {"group": "A6"}, "task.group=A6 is unknown, permitted are S3, A5, S5, Z60, A4xZ5"),
        ("modular_arithmetic", {"seq_len": 9}, "task.seq_len=9 .* whole numbers from 10, so"),
        ("modular_arithmetic_brackets", {"seq_len": 17}, "task.seq_len=17 .* whole numbers from 18, so"),
        ("modular_arithmetic", {"test_seq_len": 24}, "task.test_seq_len=24 .* whole numbers from seq_len, here 25"),
        ("mano", {"seq_len": 9}, "task.seq_len=9 .* whole numbers from 10, for max_length"),
        ("stack", {"seq_len": 97}, "task.seq_len=97 .* multiples of 3"),
        ("selective_gaps", {"seq_len": 89}, "task.seq_len=89 .* whole numbers from 90, with gaps of 4"),
        ("selective_gaps", {"num_starts": 9}, "task.num_starts=9 .* whole numbers up to num_symbols, here 8"),
        ("selective_gaps", {"test_gaps": [2, 2]}, r"task.test_gaps=\[2,2\] repeats a number"),
        ("selective_gaps", {"test_gaps": [700]}, r"task.test_gaps=\[700\] .* factors up to 682"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(name, changes, message):
    with pytest.raises(ValueError, match=message):
        build(name, **changes)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("word_problem_s3", {"seq_len": 8}),
        ("word_problem_a5", {"seq_len": 4}),
        ("even_pairs", {"seq_len": 18}),
        ("modular_arithmetic", {"modulus": 2, "seq_len": 14}),
        ("modular_arithmetic_brackets", {"modulus": 2, "seq_len": 26}),
        ("mano", {"modulus": 5, "max_length": 2}),
        ("selective_gaps", {"seq_len": 90}),
        ("selective_gaps", {"test_gaps": [682]}),
    ],
)
def test_the_smallest_settings_that_are_permitted_have_examples_of_every_split(name, changes):
    made = build(name, **changes)
    assert made.version == type(made).version
    for split in made.splits:
        batch = made.batch(split, range(16))
        assert len(set(map(tuple, batch.tokens.tolist()))) > 8


def written(tokens: list[int], modulus: int = 5) -> str:
    return "".join(([*map(str, range(modulus)), *"+-*()=_"])[token] for token in tokens)


@pytest.mark.parametrize("name", ["modular_arithmetic", "modular_arithmetic_brackets"])
@pytest.mark.parametrize(("split", "length"), [("train", 25), ("test", 97)])
def test_an_expression_has_the_value_that_python_gives_it(name, split, length):
    made = build(name)
    batch = made.batch(split, range(400))
    assert batch.tokens.shape == (400, length)
    for tokens, place, answer in questions(batch):
        expression, rest = written(tokens[:place]), written(tokens[place:])
        assert rest == "=" + "_" * (length - 1 - place)
        assert eval(expression) % 5 == answer


def test_without_brackets_numbers_and_operators_are_uniform_and_take_turns():
    batch = build("modular_arithmetic").batch("train", range(8 * BLOCK))
    expressions = [written(tokens[:place]) for tokens, place, _ in questions(batch)]
    assert uniform(Counter(map(len, expressions)), range(5, 25, 2))
    assert uniform(Counter("".join(each[0::2] for each in expressions)), "01234")
    assert uniform(Counter("".join(each[1::2] for each in expressions)), "+-*")


def parts(expression: str) -> tuple[str, str, str] | None:
    """Left, operator and right of an operation in brackets, None for a number with or without them."""
    if len(expression) < 5:
        assert expression.strip("()-") in "01234" and expression in {
            f"{a}{s}{d}{b}" for a, b in (("", ""), ("(", ")")) for s in ("", "-") for d in "01234"
        }
        return None
    assert expression[0] == "(" and expression[-1] == ")"
    depth = 0
    for place in range(1, len(expression)):
        depth += (expression[place] == "(") - (expression[place] == ")")
        if not depth and expression[place] not in "-+*" and expression[place + 1] in "+-*":
            return expression[1 : place + 1], expression[place + 1], expression[place + 2 : -1]
    raise AssertionError(expression)


def test_with_brackets_the_left_part_has_every_length_with_the_same_chance():
    made = build("modular_arithmetic_brackets")
    left, operators = Counter(), Counter()
    for tokens, place, _ in questions(made.batch("train", range(12 * BLOCK))):
        waiting = [written(tokens[:place])]
        while waiting:
            expression = waiting.pop()
            if found := parts(expression):
                first, operator, second = found
                waiting += [first, second]
                operators[operator] += 1
                if len(expression) == 12:
                    left[len(first)] += 1
    assert uniform(left, range(1, 9)) and uniform(operators, "+-*")


@pytest.mark.parametrize("name", ["modular_arithmetic", "modular_arithmetic_brackets"])
def test_lengths_are_told_in_at_most_sixteen_bands(name):
    made = build(name)
    batch = made.batch("test", range(made.num_examples("test")))
    places = [place for _, place, _ in questions(batch)]
    assert set(batch.slices["length"]) == set(range(6, 97, 6))
    assert all(band - 6 < place <= band for band, place in zip(batch.slices["length"], places, strict=True))
    odd = build(name, test_seq_len=41, num_test=1000).batch("test", range(1000)).slices["length"]
    assert set(odd) == {*range(6, 40, 3), *([40] if made.settings.brackets else [])}


def value(expression: list[int]) -> tuple[int, list[int]]:
    """The value of a prefix expression with operators 23 ... 28, and what stands behind it."""
    head, *rest = expression
    if head < 23:
        return head, rest
    left, rest = value(rest)
    right, rest = value(rest)
    return [left + right, left - right, left * right][(head - 23) % 3] % 23, rest


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_mano_asks_for_the_value_of_a_prefix_expression(split):
    made = build("mano", max_length=10, seq_len=30)
    batch, lengths = made.batch(split, range(400)), Counter()
    for (tokens, place, answer), length in zip(questions(batch), batch.slices["length"], strict=True):
        assert tokens[0] in (29, 30) and tokens[1] in (29 + 2 * length, 30 + 2 * length) and place == 2 * length + 3
        assert value(tokens[2:place]) == (answer, [])
        assert tokens[place] in (49 + 2 * length, 50 + 2 * length) and set(tokens[place + 1 :]) <= {71}
        lengths[length] += 1
    assert set(lengths) == (set(range(1, 11)) if split != "test" else {10}) and made.vocab_size == 72


def test_mano_splits_operations_uniformly_and_shows_every_entry_of_its_tables():
    tokens = build("mano", max_length=4, seq_len=12).batch("train", range(40 * BLOCK)).tokens.tolist()
    first, seen, begins, operators = Counter(), set(), Counter(), Counter()
    for example in tokens:
        begins[example[0]] += 1
        operators.update(token for token in example if 23 <= token < 29)
        length = (example[1] - 31) // 2 + 1
        for t, token in enumerate(example[2 : 2 * length + 1], start=2):
            if 23 <= token < 29 and example[t + 1] < 23 and example[t + 2] < 23:
                seen.add(((token - 23) % 3, *example[t + 1 : t + 3]))
        if length == 4:
            _, rest = value(example[3 : 2 * length + 3])
            first[(2 * length - len(rest) - 1) // 2] += 1
    assert len(seen) == 3 * 23**2
    assert uniform(first, range(4)) and uniform(begins, (29, 30)) and uniform(operators, range(23, 29))


@pytest.mark.parametrize("name", ["mano", "modular_arithmetic"])
def test_one_question_is_guessed_among_all_its_answers(name):
    made = build(name)
    rows = made.references("validation", reach=None)
    guess = 1 / len(made.answers)
    assert {row.value for row in rows} == {guess} and values(rows, "chance")[()] == guess
    batch = made.batch("validation", range(made.num_examples("validation")))
    (name, column), *_ = batch.slices.items()
    counts = {row.slice[name]: row.count for row in rows if row.slice}
    assert counts == Counter(column) and set(batch.targets[batch.asked].tolist()) == set(made.answers)
    assert all(options.tolist() == list(made.answers) for options in made.choices(batch))


def test_a_pop_asks_for_what_was_pushed_last_and_no_stack_is_popped_empty():
    made = build("stack", num_stacks=4, num_symbols=16, seq_len=240)
    assert made.vocab_size == 22
    pops, from_stack, again, pushed = 0, Counter(), Counter(), Counter()
    batch = made.batch("train", range(BLOCK))
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        stacks: dict[int, list[int]] = {stack: [] for stack in range(2, 6)}
        popped = None
        for t in range(0, 240, 3):
            operation, stack, symbol = tokens[t : t + 3]
            assert targets[t] == targets[t + 2] == IGNORE and 6 <= symbol < 22
            filled = [each for each in stacks if stacks[each]]
            if operation == 1:
                assert stacks[stack].pop() == symbol == targets[t + 1]
                pops += 1
                if len(filled) == 3:
                    from_stack[filled.index(stack)] += 1
                if len(filled) == 2 and popped in filled:
                    again[stack == popped] += 1
                popped = stack
            else:
                popped = None
                assert operation == 0 and targets[t + 1] == IGNORE
                stacks[stack].append(symbol)
                pushed[stack] += 1
    # The chance of every number of symbols in the stacks; where there is none, an operation is a push.
    heights, expected = np.eye(82)[0], 0.0
    for _ in range(80):
        popping = heights / 2 * (np.arange(82) > 0)
        expected += popping.sum() / 80
        heights = np.roll(popping, -1) + np.roll(heights - popping, 1)
    assert pops / (BLOCK * 80) == pytest.approx(expected, abs=0.01)
    assert uniform(from_stack, range(3)) and uniform(again, (False, True)) and uniform(pushed, range(2, 6))


def symbols_of(made, tokens: list[int]) -> tuple[list[int], list[int]]:
    """The places of symbols, and the symbols."""
    first = 1 + made.num_symbols
    places = [t for t, token in enumerate(tokens) if first <= token < first + made.num_symbols]
    return places, [tokens[t] - first for t in places]


def test_states_are_those_of_one_grammar_whatever_the_split():
    """A table of steps that is learnt from training examples answers all others."""
    made = build("selective_gaps")
    start, step = {}, {}
    for split, count in (("train", 4000), ("validation", 256), ("test", 256)):
        batch = made.batch(split, range(count))
        for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
            places, symbols = symbols_of(made, tokens)
            assert [t for t, target in enumerate(targets) if target != IGNORE] == places and len(places) == 24
            states = [targets[t] - 17 for t in places]
            assert [state // 4 for state in states] == symbols
            assert start.setdefault(symbols[0], states[0]) == states[0]
            for before, symbol, state in zip(states[:-1], symbols[1:], states[1:], strict=True):
                assert step.setdefault((before, symbol), state) == state
    assert len(start) == 4 and 2 * 32 <= len(step) <= 8 * 32
    # A state that one symbol alone shows would need no memory.
    assert len(set(step.values())) > 16


def test_gaps_are_short_in_training_and_a_multiple_of_the_longest_in_the_test():
    made = build("selective_gaps")
    training = Counter()
    for tokens in made.batch("train", range(200)).tokens.tolist():
        places, _ = symbols_of(made, tokens)
        training.update(np.diff(places) - 1)
    assert uniform(training, range(1, 5))
    batch = made.batch("test", range(64))
    assert batch.slices["gap"] == [1, 2, 5, 10] * 16 and batch.tokens.shape == (64, 24 * 41)
    for tokens, factor in zip(batch.tokens.tolist(), batch.slices["gap"], strict=True):
        places, _ = symbols_of(made, tokens)
        assert places == [t * (1 + 4 * factor) for t in range(24)]
    gap = batch.tokens[~batch.asked]
    assert ((gap > 0) & (gap <= 8)).double().mean() == pytest.approx(0.2, abs=0.01) and (gap <= 8).all()


def test_gap_share_is_the_share_of_symbols_with_a_gap():
    made = build("selective_gaps", gap_share=0.3, noise=0.0)
    places = [symbols_of(made, tokens)[0] for tokens in made.batch("train", range(200)).tokens.tolist()]
    assert np.mean([np.diff(each) > 1 for each in places]) == pytest.approx(0.3, abs=0.03)
    assert (made.batch("train", range(20)).tokens[~made.batch("train", range(20)).asked] == 0).all()


def test_a_grammar_has_its_density_and_two_followers_at_least():
    sizes = {"num_symbols": 40, "depth": 40, "max_gap": 10, "seq_len": 2200}
    one, other = (build("selective_gaps", seed=seed, **sizes).grammar for seed in (0, 1))
    assert (one.follows >= 0).mean() == pytest.approx(0.4, abs=0.01) and not np.array_equal(one.follows, other.follows)
    assert len(set((one.starts // 40).tolist())) == 4
    few = build("selective_gaps", density=0.0).grammar
    assert few.counts.tolist() == [2] * 32 and ((few.follows >= 0).sum(axis=1) == 2).all()
    for state in range(32):
        assert set(few.followers[state, :2].tolist()) == set(few.follows[state][few.follows[state] >= 0].tolist())


def test_no_string_is_in_two_splits_under_any_seed():
    """So few strings are likely here that without the rule splits would share some."""
    seen: dict[str, set] = {}
    for seed in range(3):
        made = build("selective_gaps", seed=seed, seq_len=38, max_gap=1, num_symbols=2, depth=1, num_starts=1)
        for split in made.splits:
            for tokens in made.batch(split, range(1000)).tokens.tolist():
                seen.setdefault(split, set()).add(tuple(symbols_of(made, tokens)[1]))
    assert sum(map(len, seen.values())) == len(set.union(*seen.values())) and all(seen.values())
