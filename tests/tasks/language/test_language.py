from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from conf.settings import Refusal, with_neutral
from tasks.language import tokens
from tasks.language.ngram import trigram_bits
from tasks.language.task import Language, WithoutText
from tasks.task import IGNORE, Scored
from tests.tasks.composed import build, settings
from tests.tasks.language.texts import text_data

SEQ_LEN = 8


@pytest.fixture
def make_task(tmp_path):
    """Builds a task over documents of text."""

    def make(documents=None, **changes) -> Language:
        documents = documents or [f"document number {i}, naïve\n" for i in range(60)]
        held_out = changes.pop("validation_path", None)
        path = tmp_path / "text.txt"
        path.write_text("<|endoftext|>\n".join(documents))
        data = text_data(path, tmp_path / "cache", tokenizer=changes.pop("tokenizer", None), validation_path=held_out)
        arguments = {"seq_len": SEQ_LEN, "reset_at_bos": False, "max_validation_examples": None}
        seed = changes.pop("seed", 0)
        return build("language", seed=seed, data=data, **(arguments | changes))

    return make


def stream(task: Language, split: str) -> list[int]:
    """The ids that the examples of a split predict, in order."""
    targets = task.batch(split, range(task.num_examples(split))).targets
    return torch.where(targets == IGNORE, task.tokenizer.bos, targets).flatten().tolist()


def scored(task: Language, split: str, nll: torch.Tensor, batch_size: int = 3):
    for indices in torch.arange(task.num_examples(split)).split(batch_size):
        batch = task.batch(split, indices.tolist())
        yield Scored(batch, nll[indices], batch.targets)


def random_nll(task: Language, split: str = "validation") -> torch.Tensor:
    shape = (task.num_examples(split), task.seq_len)
    return torch.from_numpy(np.random.default_rng(0).random(shape))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_packing_asks_every_token_once_but_bos(make_task, split):
    task = make_task()
    batch = task.batch(split, range(task.num_examples(split)))
    bos = task.tokenizer.bos
    assert (batch.tokens[:, 0] == bos).all()
    ids = torch.tensor(stream(task, split)).view(-1, SEQ_LEN)
    assert (batch.tokens[:, 1:] == ids[:, :-1]).all()
    assert (batch.targets == IGNORE).sum() == (ids == bos).sum() > 0
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    text = task.tokenizer.decode(ids.flatten().tolist())
    assert "document number" in text and task.num_examples(split) * SEQ_LEN == ids.numel()


def test_splits_share_no_document(make_task):
    task = make_task()
    texts = [
        set(bytes(i if i != task.tokenizer.bos else 0 for i in stream(task, split)).split(b"\0")[1:-1]) for split in task.splits
    ]
    assert all(texts) and not texts[0] & texts[1]


def test_the_cache_is_written_when_the_task_is_prepared_and_read_by_the_next(make_task, tmp_path):
    task = make_task()
    assert not (tmp_path / "cache").exists()
    before = stream(task, "train")
    task.prepare()
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".sha256", ".sha256", ".tokens", ".tokens"]
    again = make_task()
    assert stream(task, "train") == stream(again, "train") == before and again.fingerprint() == task.fingerprint()


def test_a_text_that_asks_nothing_is_refused(make_task, tmp_path):
    """What is scored lies in documents of which the tokenizer knows no letter."""
    letters = Tokenizer(models.BPE({letter: i for i, letter in enumerate("acdeht")}, []))
    letters.save(str(tmp_path / "letters.json"))
    documents = [f"{i}\n" for i in range(60)] + [f"{word * 9}\n" for word in ("hat", "ache", "heed", "teach", "each")] * 9
    settings = {"tokenizer": str(tmp_path / "letters.json"), "seq_len": 2}
    task = make_task(documents, **settings)
    assert task.num_examples("validation") > 9 and not task.batch("validation", [0]).asked.any()
    with pytest.raises(ValueError, match="validation text asks nothing, of 1 examples .*json' give no byte") as caught:
        make_task(documents, max_validation_examples=1, **settings)
    assert "\n" not in str(caught.value)
    nll = torch.ones(task.num_examples("validation"), 2)
    rows = task.measure("validation", scored(task, "validation", nll))
    # An example that asks nothing has no loss, which is another thing than a loss of 0.
    assert math.isnan(rows[0].examples[0]) and set(rows[0].examples[1:]) >= {1.0}
    rows += task.measure_positions("validation", scored(task, "validation", nll)) + task.references("validation", reach=None)
    assert all(math.isfinite(row.value) for row in rows)


def test_bits_per_byte_are_over_the_bytes_that_are_predicted(make_task, tmp_path):
    """By hand: 2 bits a letter, of which each is a byte, and what the tokenizer drops is no byte."""
    letters = Tokenizer(models.BPE({letter: i for i, letter in enumerate("acdeht")}, []))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    letters.save(str(tmp_path / "letters.json"))
    task = make_task(["hat№" * 400], tokenizer=str(tmp_path / "letters.json"))
    nll = torch.full((task.num_examples("validation"), SEQ_LEN), 2 * math.log(2))
    rows = {row.metric: row for row in task.measure("validation", scored(task, "validation", nll))}
    assert rows["bits_per_byte"].value == pytest.approx(2) and rows["bits_per_byte"].count == nll.numel()


def test_starts_mark_bos_where_asked(make_task):
    assert make_task().batch("train", [0]).starts is None
    batch = make_task(reset_at_bos=True).batch("train", range(20))
    assert (batch.starts == (batch.tokens == 256)).all() and batch.starts.sum() > 20


@pytest.mark.parametrize("tokenizer", ["bytes", "file"])
def test_bits_per_byte_are_exact(make_task, make_tokenizer_file, tokenizer):
    path = None if tokenizer == "bytes" else make_tokenizer_file(["<s>"])
    task = make_task(tokenizer=path)
    nll = random_nll(task)
    rows = {row.metric: row for row in task.measure("validation", scored(task, "validation", nll))}
    ids = torch.tensor(stream(task, "validation")).view_as(nll)
    asked = ids != task.tokenizer.bos
    text = task.tokenizer.decode(ids.flatten().tolist())
    num_bytes = rows["bits_per_byte"].count
    # The last run may end inside a character, whose bytes are counted at its first token.
    assert abs(num_bytes - len(text.encode())) <= 3
    assert rows["nll"].value == pytest.approx(nll[asked].mean().item()) and rows["nll"].count == asked.sum()
    assert rows["perplexity"].value == pytest.approx(math.exp(nll[asked].mean()))
    assert rows["bits_per_byte"].value == pytest.approx(nll[asked].sum().item() / math.log(2) / num_bytes)
    examples = torch.where(asked, nll, 0).sum(1) / asked.sum(1)
    assert rows["nll"].examples == pytest.approx(examples.tolist())


def test_bits_per_byte_of_a_fair_coin_over_bytes(make_task):
    """By hand: one bit a byte, whatever else the text is."""
    task = make_task(["x" * 400])
    nll = torch.full((task.num_examples("validation"), SEQ_LEN), math.log(2))
    rows = {row.metric: row for row in task.measure("validation", scored(task, "validation", nll))}
    assert rows["bits_per_byte"].value == pytest.approx(1) and rows["bits_per_byte"].count == 80
    assert rows["perplexity"].value == pytest.approx(2)


def test_a_perplexity_that_no_float_holds_is_infinite_beside_its_nll(make_task):
    task = make_task()
    nll = torch.full((task.num_examples("validation"), task.seq_len), 800.0, dtype=torch.float64)
    rows = {row.metric: row.value for row in task.measure("validation", scored(task, "validation", nll))}
    assert rows["nll"] == 800 and rows["perplexity"] == math.inf


def test_positions_are_all_there_and_add_up(make_task):
    task = make_task()
    nll = random_nll(task)
    rows = task.measure_positions("validation", scored(task, "validation", nll))
    asked = task.batch("validation", range(task.num_examples("validation"))).targets != IGNORE
    plain, so_far = (
        [row for row in rows if row.metric == metric and "position" in row.slice] for metric in ("nll", "nll_so_far")
    )
    for column in (plain, so_far):
        assert [row.slice["position"] for row in column] == list(range(SEQ_LEN))
    for t, (here, until) in enumerate(zip(plain, so_far, strict=True)):
        assert here.value == pytest.approx(nll[:, t][asked[:, t]].mean().item()) and here.count == asked[:, t].sum()
        assert until.value == pytest.approx(nll[:, : t + 1][asked[:, : t + 1]].mean().item())
    (overall,) = (row for row in task.measure("validation", scored(task, "validation", nll)) if row.metric == "nll")
    assert so_far[-1].value == pytest.approx(overall.value) and so_far[-1].count == overall.count


@pytest.mark.parametrize(("seq_len", "edges"), [(1, [0, 1]), (2, [0, 1, 2]), (8, [0, 1, 2, 4, 8]), (12, [0, 1, 2, 4, 8, 12])])
def test_position_ranges_cover_the_sequence_once(make_task, seq_len, edges):
    task = make_task(["x" * 400], seq_len=seq_len)
    nll = random_nll(task)
    rows = task.measure_positions("validation", scored(task, "validation", nll))
    ranges = [row for row in rows if "position_low" in row.slice]
    assert [row.slice["position_low"] for row in ranges] == edges[:-1]
    assert [row.slice["position_high"] for row in ranges] == edges[1:]
    for row in ranges:
        inside = nll[:, row.slice["position_low"] : row.slice["position_high"]].mean(1)
        assert row.examples == pytest.approx(inside.tolist()) and row.value == pytest.approx(inside.mean().item())


def test_validation_is_spread_over_the_held_out_text(make_task):
    everything, some = make_task(), make_task(max_validation_examples=3)
    count = everything.num_examples("validation")
    chosen = everything.batch("validation", [0, count // 3, 2 * count // 3])
    assert some.num_examples("validation") == 3
    assert (some.batch("validation", range(3)).targets == chosen.targets).all()


def test_references_bracket_what_counting_can_do(make_task):
    task = make_task()
    rows = {row.metric: row for row in task.references("validation", reach=None)}
    assert 0 < rows["trigram_bits_per_byte"].value < rows["unigram_bits_per_byte"].value < 8
    constant = make_task(["x" * 4000])
    rows = {row.metric: row.value for row in constant.references("validation", reach=None)}
    assert 0 < rows["unigram_bits_per_byte"] < 0.01 and 0 < rows["trigram_bits_per_byte"] < 0.2


def test_references_are_counted_once_a_task(make_task, monkeypatch):
    counted = []
    monkeypatch.setattr("tasks.language.task.trigram_bits", lambda *given: counted.append(True) or trigram_bits(*given))
    task = make_task()
    assert task.references("validation", reach=None) == task.references("validation", reach=4)
    assert len(counted) == 1


def test_unigram_floor_of_two_letters_is_one_bit(make_task):
    rows = make_task(["ab" * 500]).references("validation", reach=None)
    assert rows[0].value == pytest.approx(1, abs=5e-3)


def test_unigram_floor_leaves_bos_out(make_task):
    task = make_task(seq_len=1)
    counts, asked = (Counter(i for i in stream(task, split) if i != task.tokenizer.bos) for split in ("train", "validation"))
    total, different = counts.total() + len(counts), len(counts) / task.vocab_size
    expected = -sum(n * math.log2((counts[i] + different) / total) for i, n in asked.items()) / asked.total()
    (unigram, _) = task.references("validation", reach=None)
    assert unigram.value == pytest.approx(expected) and unigram.count == asked.total()


@pytest.mark.parametrize("max_validation_examples", [None, 7])
def test_a_window_belongs_to_the_document_of_most_of_its_tokens(make_task, max_validation_examples):
    documents = [f"{i % 10}" * (3 + 7 * i % 23) + "\n" for i in range(60)]
    task = make_task(documents, max_validation_examples=max_validation_examples)
    whole = make_task(documents, seq_len=1)
    document, seen = [], 0
    for i in stream(whole, "validation"):
        seen += i == whole.tokenizer.bos
        document.append(None if i == whole.tokenizer.bos else seen)
    expected = []
    for run in task._places("validation", range(task.num_examples("validation"))).tolist():
        inside = Counter(d for d in document[run * SEQ_LEN : (run + 1) * SEQ_LEN] if d is not None)
        # Equal counts: the earlier, which was counted first.
        expected.append(inside.most_common(1)[0][0])
    assert list(task.groups("validation")) == expected and len(set(expected)) > 3
    nll = random_nll(task)
    rows = [*task.measure("validation", scored(task, "validation", nll))]
    rows += task.measure_positions("validation", scored(task, "validation", nll))
    assert {row.groups for row in rows if row.examples} == {tuple(expected)}
    assert {row.groups for row in rows if not row.examples} == {None}


def test_fingerprint_follows_the_text_the_split_and_the_tokenizer(make_task, make_tokenizer_file, tmp_path):
    same = [make_task(), make_task(max_validation_examples=2, seed=3)]
    # These two tokenizers give the same ids.
    tokenizers = [make_tokenizer_file([name]) for name in ("<s>", "<bos>")]
    other = [make_task(["another text " * 50]), *(make_task(tokenizer=path) for path in tokenizers)]
    prints = [task.fingerprint() for task in same + other]
    assert prints[0] == prints[1] and len(set(prints)) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_len": 10_000}, "task.seq_len=10000 is more than the [0-9]+ tokens"),
        ({"documents": ["x" * 30]}, "task.seq_len=8 is more than the [0-9] tokens"),
        ({"documents": ["short"]}, "task.seq_len=8 is more than the [0-9] tokens"),
    ],
)
def test_wrong_settings_are_named_and_write_nothing(make_task, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make_task(**changes)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "stdlib", "path": "a.txt"}, "data.path=.* null with data=stdlib"),
        ({"path": None}, "data.path=null .* paths of text files"),
        ({"name": "stdlib", "path": None, "validation_fraction": 0.05}, "data.validation_fraction=0.05 .* from 0.1"),
        ({"name": "stdlib", "path": None, "validation_path": "a"}, "data.validation_path=.* null with data=stdlib"),
        ({"name": "stdlib", "path": None, "held_out": "each"}, "data.held_out=each .* smallest with data=stdlib"),
        ({"format": "jsonl"}, "data.text_field=null .* the field of a row"),
        ({"format": "huggingface", "path": None}, "data.repository=null .* names of the Hugging Face hub"),
        ({"format": "jsonl", "text_field": "text"}, "data.held_out=smallest .* each with data.format=jsonl"),
        ({"vocab_size": 9}, "data.vocab_size=9 .* null with data.format=text; others take bin, npy"),
        ({"rows": "lines"}, "data.rows=lines .* documents with data.format=text"),
        ({"subset": "en"}, "data.subset=en .* null with data.format=text; others take huggingface"),
        ({"format": "table"}, "data.format=table is unknown, permitted are text, jsonl, parquet"),
        ({"validation_fraction": 1.0}, "data.validation_fraction=1 .* below 1"),
    ],
)
def test_a_text_and_its_source_that_contradict_each_other_are_refused(changes, message):
    data = text_data("a.txt", "cache") | changes
    with pytest.raises(Refusal, match=message):
        settings("language", data=data)


def test_other_lengths_are_of_the_same_text_and_spread_over_it(make_task):
    task = make_task()
    longer = task.resized(seq_len=2 * SEQ_LEN, examples=3)
    assert longer.num_examples("validation") == 3 and longer.fingerprint() == task.fingerprint()
    places = (np.arange(3) * (task.num_examples("validation") // 2)) // 3
    whole = torch.tensor(stream(task, "validation"))[: len(stream(task, "validation")) // 16 * 16].view(-1, 2 * SEQ_LEN)
    assert torch.equal(torch.tensor(stream(longer, "validation")).view(3, -1), whole[places])


def test_a_text_that_has_changed_is_not_resized(make_task):
    task = make_task()
    make_task([f"another document {i}\n" for i in range(60)])
    with pytest.raises(ValueError, match="data=text: its text has changed"):
        task.resized(seq_len=SEQ_LEN, examples=2)


def test_a_task_without_text_has_its_tokenizer_and_says_why_it_has_no_more(make_task):
    without = WithoutText(make_task().settings, reason="the text is elsewhere")
    assert without.tokenizer.bos == 256 and without.vocab_size == 257 and without.measures_positions
    wanted = (without.fingerprint, lambda: without.batch("train", [0]), lambda: without.resized(seq_len=4, examples=1))
    for ask in wanted:
        with pytest.raises(ValueError, match="the text is elsewhere"):
            ask()


def test_what_was_added_to_a_text_leaves_the_names_of_old_runs(make_task):
    plain = make_task().settings
    assert "packing" not in plain.named(neutral=False) and plain.named(neutral=False)["data"] == {"validation_fraction": 0.2}
    other = plain.replace({"packing": "documents"})
    assert other.named(neutral=False)["packing"] == "documents"
    # A configuration from before says nothing of it.
    old = plain.plain()
    del old["packing"]
    old["data"] = {key: old["data"][key] for key in ("name", "path", "tokenizer", "validation_fraction", "cache")}
    assert Language.Settings.read(with_neutral(Language.Settings, old)) == plain.replace({"data": {**old["data"], **NEUTRAL}})


NEUTRAL = {
    **{key: None for key in ("validation_path", "text_field", "repository", "subset", "revision", "train_split")},
    **{key: None for key in ("validation_split", "bos", "vocab_size", "dtype", "workers")},
    **{"format": "text", "held_out": "smallest", "rows": "documents"},
}


def test_a_validation_file_is_held_out_whole_and_the_other_trained_on_whole(make_task, tmp_path):
    (tmp_path / "held_out.txt").write_text("held out\n<|endoftext|>\nand this\n")
    task = make_task(validation_path=str(tmp_path / "held_out.txt"), seq_len=1)
    ids = {split: bytes(i for i in stream(task, split) if i < 256).decode() for split in task.splits}
    assert ids["validation"] == "held out\nand this\n"
    assert ids["train"] == "".join(f"document number {i}, naïve\n" for i in range(60))
    assert task.fingerprint() != make_task(seq_len=1).fingerprint()


def test_a_file_that_is_trained_on_and_held_out_is_said(make_task, tmp_path, caplog):
    tokens.warn_once.cache_clear()
    make_task(validation_path=str(tmp_path / "." / "*.txt"), seq_len=1)
    (line,) = caplog.messages
    assert line.startswith(f"data.validation_path: '{tmp_path}/text.txt' is in data.path, too")


def test_documents_packed_as_in_the_paper_ask_every_id_and_no_bos(make_task):
    """The first piece of each example, one after another, are the documents; runs of the same text have other examples."""
    task = make_task(packing="documents")
    batch = task.batch("train", range(task.num_examples("train")))
    bos = task.tokenizer.bos
    assert (batch.tokens[:, 0] == bos).all() and ((batch.targets == IGNORE) == (torch.roll(batch.tokens, -1, 1) == bos))[
        :, :-1
    ].all()
    part = task._parts["train"]
    firsts = [i for row, target in enumerate(batch.targets) for i in target[: part.segments(row)[0].length].tolist()]
    runs = [i for i in stream(make_task(seq_len=1), "train") if i != bos]
    assert firsts == runs
    nll = random_nll(task)
    rows = {row.metric: row for row in task.measure("validation", scored(task, "validation", nll))}
    asked = task.batch("validation", range(task.num_examples("validation"))).asked
    assert rows["bits_per_byte"].count == asked.sum() == rows["nll"].count
    assert rows["bits_per_byte"].value == pytest.approx(nll[asked].mean().item() / math.log(2))
    assert len(rows["nll"].groups) == task.num_examples("validation")
    assert {row.metric for row in task.references("validation", reach=None)} == {"unigram_bits_per_byte", "trigram_bits_per_byte"}


def test_looking_at_all_examples_some_at_a_time_gives_the_same_scores(make_task, monkeypatch):
    task = make_task()
    nll = random_nll(task)

    def rows():
        return task.measure("validation", scored(task, "validation", nll)), task.references("validation", reach=None)

    (whole, floors), groups = rows(), task.groups("validation")
    monkeypatch.setattr("tasks.language.task.CHUNK_IDS", 3 * SEQ_LEN)
    monkeypatch.setattr("tasks.language.packing.CHUNK_WINDOWS", 2)
    (cut, others), _ = rows(), None
    assert cut == whole and task.groups("validation") == groups
    assert [row.value for row in others] == pytest.approx([row.value for row in floors])
