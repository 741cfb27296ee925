"""Which tokens of a benchmark's texts are scored, whatever the tokenizer merges."""

from __future__ import annotations

import itertools

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from models.build import build_model
from suite.evaluation.continuation import Prompt, continue_prompts, score_continuations
from suite.evaluation.lm_eval_adapter import BackboneLM, encode_pair
from suite.request.compose import compose_one
from tasks.language.tokenizer import ByteTokenizer, FileTokenizer, Tokenizer

TEXT = """The sky is black as night and the moon is blue. Good morning to you all, said the baker; naïve cafés of Łódź,
東京 and Köln open at seven... "computer", he bought a new comma in the list, and hello world goes on and on and on."""
WORDS = TEXT.split()


class Convention(TemplateLM):
    """lm-eval's own split of a context and its continuation, as its `hf` backend has it."""

    eot_token_id = 0

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.text_tokenizer = tokenizer

    def tok_encode(self, string, add_special_tokens=None, **settings):
        return self.text_tokenizer.encode(string)

    def _loglikelihood_tokens(self, requests, **settings): ...

    def loglikelihood_rolling(self, requests, disable_tqdm=False): ...

    def generate_until(self, requests, disable_tqdm=False): ...


def saved(backend: Backend, folder) -> FileTokenizer:
    path = folder / "tokenizer.json"
    backend.save(str(path))
    return FileTokenizer(str(path), None)


@pytest.fixture(scope="module")
def bpe(tmp_path_factory) -> FileTokenizer:
    """600 tokens that have learnt this text's words whole."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator([TEXT] * 9, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False))
    return saved(backend, tmp_path_factory.mktemp("bpe"))


def metaspace(folder) -> FileTokenizer:
    """As SentencePiece has it: every text begins with a space, and ▁ the is one piece."""
    backend = Backend(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.train_from_iterator([TEXT] * 9, trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>"], show_progress=False))
    return saved(backend, folder)


@pytest.mark.parametrize("cut", range(1, 10))
def test_the_tokens_of_every_answer_cover_all_of_it(bpe, cut):
    checked = 0
    for first, second in itertools.pairwise(WORDS):
        word = f"{first} {second}"
        context, answer = word[:cut], word[cut:]
        if not answer:
            continue
        read, scored = encode_pair(bpe, context, answer)
        moved = context[len(context.rstrip()) :]
        assert bpe.decode(scored) == moved + answer, (context, answer)
        assert bpe.decode(read) == context.rstrip()
        assert read[0] == bpe.bos
        checked += 1
    assert checked >= 5


def test_where_lm_eval_scores_the_whole_answer_the_tokens_are_its_own(bpe):
    theirs, whole = Convention(bpe), 0
    for start, end in itertools.combinations(range(0, 110), 2):
        context, answer = TEXT[start:end], TEXT[end : end + 9]
        read, scored = theirs._encode_pair(context, answer)
        if bpe.decode(scored) == context[len(context.rstrip()) :] + answer:
            whole += 1
            assert encode_pair(bpe, context, answer) == ([bpe.bos, *read], scored)
    assert whole > 1000


@pytest.mark.parametrize(
    "context, answer, read, scored",
    [
        ("The sky", " is", "The sky", " is"),
        ("The sky ", "is", "The sky", " is"),
        ("The sky\n", "is", "The sky", "\nis"),
        ("", "The sky", "", "The sky"),
        ("  ", "The sky", "", "  The sky"),
        ("The sky", "   ", "The sky", "   "),
        ("The sky ", "", "The sky", " "),
        ("The sk", "y", "The sk", "y"),
    ],
)
def test_spaces_between_belong_to_the_answer(bpe, context, answer, read, scored):
    found = encode_pair(bpe, context, answer)
    assert [bpe.decode(ids) for ids in found] == [read, scored]


def test_an_unknown_word_that_swallows_the_answer_does_not_score_its_rest(tmp_path):
    backend = Backend(models.WordLevel({"<unk>": 0, "and": 1, "b": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = saved(backend, tmp_path)
    # As one text: <unk> for "xyzb", then "and". What is scored is "b", then "and".
    assert encode_pair(tokenizer, "xyz", "b and") == ([tokenizer.bos, 0], [2, 1])


def test_pieces_that_begin_with_their_space_are_scored_whole(tmp_path):
    tokenizer = metaspace(tmp_path)
    for first, second in itertools.pairwise(WORDS):
        _, scored = encode_pair(tokenizer, first, f" {second}")
        assert tokenizer.decode(scored).strip() == second
        _, scored = encode_pair(tokenizer, first[:2], f"{first[2:]} {second}")
        assert tokenizer.decode(scored).strip() == f"{first[2:]} {second}".strip()


def test_an_answer_without_tokens_is_refused(bpe, tmp_path):
    with pytest.raises(ValueError, match="the answer '' has no tokens"):
        encode_pair(bpe, "The sky", "")
    backend = Backend(models.BPE({"a": 0}, []))
    with pytest.raises(ValueError, match="the answer 'é' has no tokens"):
        encode_pair(saved(backend, tmp_path), "a", "é")


def model_for(tokenizer: Tokenizer):
    config = compose_one(["model=gla", "size.d_model=32", "size.num_blocks=1"]).config
    model = build_model(config.model, config.size, vocab_size=tokenizer.vocab_size, backend="torch")
    model.reset_parameters(0)
    return model.eval()


def test_no_target_is_no_score():
    model = model_for(ByteTokenizer())
    for pair in (([256], []), ([256], [1, 2])):
        with pytest.raises(ValueError, match="has no tokens, or more"):
            score_continuations(model, [([256], [1]), pair], batch_size=2, device=torch.device("cpu"))


def adapter(tokenizer: Tokenizer) -> BackboneLM:
    return BackboneLM(
        model_for(tokenizer), tokenizer, batch_size=2, max_length=None, temperature=None, sample_seed=0, device="cpu"
    )


def request(*arguments) -> list[Instance]:
    return [Instance("loglikelihood", {}, arguments, 0, metadata=("toy", 0, 1))]


def test_a_merged_answer_has_the_score_of_its_own_tokens(bpe):
    lm = adapter(bpe)
    ((total, _),) = lm.loglikelihood(request("The sky is bl", "ue"))
    context, answer = bpe.encode("The sky is bl"), bpe.encode("ue")
    logits = lm.model(torch.tensor([[bpe.bos, *context, *answer]]))[0][0].log_softmax(-1)
    places = range(len(context), len(context) + len(answer))
    assert len(answer) >= 1 and total < -1
    assert total == pytest.approx(sum(logits[i, token].item() for i, token in zip(places, answer, strict=True)), abs=1e-4)


def test_a_text_without_tokens_is_refused_and_an_empty_one_is_certain(tmp_path):
    lm = adapter(saved(Backend(models.BPE({"a": 0}, [])), tmp_path))
    assert lm.loglikelihood_rolling(request("")) == [0.0]
    with pytest.raises(ValueError, match="the text 'é' has no tokens"):
        lm.loglikelihood_rolling(request("é"))


def test_an_empty_prompt_is_continued(bpe):
    (text,) = adapter(bpe).generate_until(request("", {"until": [], "max_gen_toks": 3}))
    assert isinstance(text, str)


class Scripted(torch.nn.Module):
    """Stands for a model: whatever it reads, it goes on with these tokens in order."""

    ends: frozenset[int] = frozenset()
    goes_on, mixes_lengths = False, False

    def __init__(self, tokens: list[int], vocab_size: int) -> None:
        super().__init__()
        self.tokens, self.vocab_size = tokens, vocab_size

    def features(self, tokens):
        return torch.zeros(*tokens.shape, 1), [0]

    def gathered(self, rows):
        return list(rows[0][0])

    def reserve(self, state, num_tokens):
        return state

    def logits(self, place: int):
        return torch.nn.functional.one_hot(torch.tensor([self.tokens[place]]), self.vocab_size).float()

    def head(self, features):
        return self.logits(0)

    def step_(self, tokens, state):
        state[0] += 1
        return self.logits(state[0])


@pytest.mark.parametrize(
    "answer, until, expected",
    [
        ("東京 and", ["京"], "東"),
        ("東京 and", [" and"], "東京"),
        ("on\n\nand", ["\n"], "on"),
        ("on\n\nand", ["\n\n"], "on"),
        ("one, two", [", t"], "one"),
    ],
)
@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_a_stop_and_a_character_may_be_of_several_tokens(bpe, answer, until, expected, kind):
    tokenizer = ByteTokenizer() if kind == "bytes" else bpe
    model = Scripted([*tokenizer.encode(answer), tokenizer.bos], tokenizer.vocab_size)
    prompt = Prompt([tokenizer.bos, *tokenizer.encode("say\n")], until, 40)
    assert continue_prompts(model, tokenizer, [prompt], batch_size=1, device=torch.device("cpu")) == [expected]
