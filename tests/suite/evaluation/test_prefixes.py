"""Beginnings that are read once: the same scores and answers as by a plain forward pass each, for every architecture."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import suite.evaluation.prefixes as prefixes
from conf.groups import whole
from models.backbone.language_model import LanguageModel
from models.build import build_model
from suite.evaluation.continuation import Prompt, continue_prompts, score_continuations
from suite.evaluation.prefixes import Node, shared
from suite.request.compose import compose_one
from tasks.language.tokenizer import ByteTokenizer
from tests.thinned import in_turn

CPU, TOKENIZER = torch.device("cpu"), ByteTokenizer()
SMALL = ("size.d_model=32", "size.num_blocks=2", "size.num_heads=2", "size.head_dim=8", "size.mlp_dim=32")
# Hybrids alternate between the first two, which have blocks of their own kind below.
NAMES = whole("model")


@functools.cache
def model_of(name: str) -> LanguageModel:
    """In float64, in which the order of additions is out of the way, and with a solver that goes on to its end."""
    config = compose_one([f"model={name}", *SMALL]).config
    model = build_model(config.model, config.size, vocab_size=TOKENIZER.vocab_size, backend="torch")
    model.reset_parameters(0)
    return model.double().eval()


@functools.cache
def pairs() -> list[tuple[list[int], list[int]]]:
    """Questions behind the same examples, each with choices of 1 to 9 tokens, one of which begins another; and one alone."""
    draw = random.Random(0)

    def text(length: int) -> list[int]:
        return [draw.randrange(256) for _ in range(length)]

    examples, made = [256, *text(41)], []
    for length in (30, 30, 33, 6):
        question = examples + text(length)
        choices = [text(1), text(1), text(4), text(9)]
        choices.append(choices[-1][:3])
        made += [(question + choice[:-1], choice) for choice in choices]
    return [*made, ([256, *text(20)], text(2)), made[3]]


@torch.no_grad()
def plain_logits(model: LanguageModel, sequences: Sequence[Sequence[int]]) -> Tensor:
    """By one forward pass [B, T, V]. What fills up a shorter sequence stands behind it, where it changes nothing."""
    longest = max(map(len, sequences))
    return model(torch.tensor([[*tokens, *[0] * (longest - len(tokens))] for tokens in sequences]))[0]


def plain(model: LanguageModel, asked: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
    scores = []
    for (read, targets), logits in zip(asked, plain_logits(model, [read for read, _ in asked]), strict=True):
        behind = logits[len(read) - len(targets) : len(read)].double().log_softmax(-1)
        chosen = behind[range(len(targets)), list(targets)].sum().item()
        scores.append((chosen, behind.argmax(-1).tolist() == list(targets)))
    return scores


@functools.cache
def plain_scores(name: str) -> list[tuple[float, bool]]:
    return plain(model_of(name), pairs())


def nodes_of(roots: Sequence[Node]) -> list[Node]:
    return [node for root in roots for node in (root, *nodes_of(root.children))]


@in_turn(name=NAMES, batch_size=[1, 7])
def test_scores_are_those_of_a_plain_forward_pass(name, batch_size):
    found = score_continuations(model_of(name), pairs(), batch_size=batch_size, device=CPU)
    for (total, is_greedy), expected in zip(found, plain_scores(name), strict=True):
        assert (total, is_greedy) == (pytest.approx(expected[0], abs=1e-5), expected[1])


def test_choices_that_begin_alike_ask_for_logits_once():
    context = [256, *range(20)]
    choices = [[1, 2, 3, 9], [1, 2, 4, 5], [1, 2, 4, 6], [7]]
    model, asked = model_of("gla"), []
    heads = model.head_parts
    model.head_parts = lambda features: asked.append(len(features)) or heads(features)
    found = score_continuations(model, [(context + choice[:-1], choice) for choice in choices], batch_size=8, device=CPU)
    # Behind the context, and "1", "1 2", "1 2 3" and "1 2 4" behind it.
    assert sum(asked) == 5
    expected = [score for score, _ in plain(model, [(context + choice[:-1], choice) for choice in choices])]
    assert [total for total, _ in found] == pytest.approx(expected, abs=1e-5)


def answers(model: LanguageModel, prompts: Sequence[Prompt], batch_size: int) -> list[str]:
    return continue_prompts(model, TOKENIZER, prompts, batch_size=batch_size, device=CPU)


@pytest.mark.parametrize("name", NAMES)
def test_answers_by_the_state_are_those_of_whole_passes(name):
    model = model_of(name)
    # Prompts of different lengths, past a window's end and before it, of which some end early.
    prompts = [Prompt(pairs()[i][0][-n:], ["\0\0"], 1 + 2 * (i % 3)) for i, n in enumerate((2, 9, 80, 80, 3, 31))]
    read = [list(prompt.tokens) for prompt in prompts]
    for _ in range(max(prompt.max_tokens for prompt in prompts)):
        for tokens, logits in zip(read, plain_logits(model, read), strict=True):
            tokens.append(int(logits[len(tokens) - 1].argmax()))
    expected = []
    for prompt, tokens in zip(prompts, read, strict=True):
        answer = tokens[len(prompt.tokens) :][: prompt.max_tokens]
        answer = answer[: answer.index(TOKENIZER.bos)] if TOKENIZER.bos in answer else answer
        expected.append(TOKENIZER.decode(answer))
    assert answers(model, prompts, 8) == answers(model, prompts, 1) == expected


@pytest.mark.parametrize("kind", ["gpt2", "sliding window", "mamba"])
def test_a_checkpoint_of_transformers_has_the_scores_of_its_plain_forward_pass(tmp_path, kind):
    transformers = pytest.importorskip("transformers", reason="needs pip install -e '.[hf]'")
    from tests.models.test_hf import CONFIGS, read

    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(CONFIGS[kind]()).save_pretrained(tmp_path)
    model = read(tmp_path)
    # From a state, recurrences of transformers read a token at a time.
    assert model.goes_on == (kind != "mamba")
    asked = [([token % 61 for token in read[-40:]], [token % 61 for token in targets]) for read, targets in pairs()]
    wanted = plain(model, asked)
    for batch_size in (1, 7):
        found = score_continuations(model, asked, batch_size=batch_size, device=CPU)
        for (total, is_greedy), expected in zip(found, wanted, strict=True):
            assert (total, is_greedy) == (pytest.approx(expected[0], abs=1e-5), expected[1])


def sequences(seed: int) -> list[list[int]]:
    """Sequences that begin as others do, end within others and occur twice."""
    draw = random.Random(seed)
    made = [[draw.randrange(3) for _ in range(draw.randrange(1, 90))]]
    for _ in range(60):
        beginning = draw.choice(made)
        made.append(beginning[: draw.randrange(len(beginning) + 1)] + [draw.randrange(3) for _ in range(draw.randrange(1, 30))])
    return made + made[:5]


@pytest.mark.parametrize("is_cut", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_every_sequence_is_the_way_to_the_node_where_it_ends(seed, is_cut):
    given = sequences(seed)
    roots, ended = shared(given, is_cut=is_cut), []
    left = [(root, []) for root in roots]
    while left:
        node, before = left.pop()
        assert len(before) < node.end
        way = before + list(node.tokens[len(before) : node.end])
        ended += [(i, way) for i in node.ends]
        assert set(node.ends) <= set(node.items) and all(given[i][: len(way)] == way for i in node.items)
        assert sorted(node.items) == sorted([*node.ends, *(i for child in node.children for i in child.items)])
        assert is_cut or not node.children
        left += [(child, way) for child in node.children]
    assert sorted(ended) == sorted(enumerate(given))
    assert any(node.children for node in roots) == is_cut


class Counted:
    """Stands around a model, counts the tokens that it reads, and remembers whether every batch went on from a state."""

    def __init__(self, model: LanguageModel) -> None:
        self.model, self.tokens, self.batches = model, 0, []
        self.head_parts, self.gathered, self.goes_on = model.head_parts, model.gathered, True

    def features(self, tokens, state=None):
        self.tokens += tokens.numel()
        self.batches.append((len(tokens), state is not None))
        return self.model.features(tokens, state)


def test_the_context_of_choices_is_read_once():
    context = [256, *range(63)]
    choices = [[1], [2], [3, 4, 5, 6, 7, 8, 9, 10, 11], [5, 6]]
    model = Counted(model_of("gla"))
    score_continuations(model, [(context + choice[:-1], choice) for choice in choices], batch_size=8, device=CPU)
    assert model.tokens <= 64 + 8 + 2
    # Choices of one token each cost no more than their context.
    model.tokens = 0
    score_continuations(model, [(context, [choice]) for choice in range(200)], batch_size=8, device=CPU)
    assert model.tokens == 64


def test_what_is_nested_many_times_is_read_once():
    nested = [[7] * (8 * n) for n in range(1, 300)]
    model = Counted(model_of("gla"))
    score_continuations(model, [(each, [7]) for each in nested], batch_size=8, device=CPU)
    assert model.tokens == len(nested[-1])


def test_states_are_kept_within_a_bound(monkeypatch):
    """At a bound of nothing the contexts of one batch are kept at a time, and the scores are the same."""
    draw = random.Random(1)
    contexts = [[256, *(draw.randrange(256) for _ in range(23))] for _ in range(12)]
    asked = [(context + [choice], [choice, 0]) for context in contexts for choice in (1, 2, 3)]
    made = []
    first, then = (4, False), (4, True)
    for bound, batches in ((prefixes.KEPT_BYTES, [first] * 3 + [(36, True)]), (0, [first, then, then, then] * 3)):
        monkeypatch.setattr(prefixes, "KEPT_BYTES", bound)
        model = Counted(model_of("gla"))
        made.append([total for total, _ in score_continuations(model, asked, batch_size=4, device=CPU)])
        assert model.batches == batches
    assert made[0] == pytest.approx(made[1])
