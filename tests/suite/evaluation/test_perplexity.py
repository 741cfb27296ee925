"""Perplexity at any length: segments are one pass, memory is flat, and a text that can't be read leaves the others alone."""

from __future__ import annotations

import functools
import gzip
import json
import math
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from conf.groups import whole
from suite.cli import main
from suite.evaluation import segments
from suite.evaluation.segments import read, windows_of
from suite.evaluation.stages import planned_stages
from suite.evaluation.studies.length import _score_rows
from suite.evaluation.studies.perplexity import Sums, rows
from suite.evaluation.texts import Text, read_text, text_name
from suite.plan import plan, task_of
from suite.request.compose import compose_one
from tasks.language.corpus import heldout_stdlib_documents
from tasks.language.settings import DataSettings
from tasks.positions import position_bands
from tests.models.test_laws import VOCAB_SIZE, kept
from tests.models.tolerances import assert_near

CPU = torch.device("cpu")
BOS = VOCAB_SIZE - 1
LENGTHS = (70, 41, 70, 1)
TINY = ("size.d_model=16", "size.num_blocks=1", "size.num_heads=2", "size.head_dim=8", "size.mlp_dim=16", "task.seq_len=32")
STEPS = ("train.steps=2", "train.warmup_steps=1", "train.batch_size=4", "compute.jobs=1")


@functools.cache
def documents(lengths: Sequence[int] = LENGTHS) -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.integers(BOS, size=length).astype(np.int32) for length in lengths]


def losses(model: torch.nn.Module, texts: Sequence[np.ndarray], windows: Sequence[segments.Window], segment: int) -> list:
    """The nll of every document's tokens by window, summed: [document][window start] -> {place: nll}."""
    found: list[dict[tuple[int, int], float]] = [{} for _ in texts]
    for window, first, nll, scored in read(model, texts, windows, bos=BOS, segment=segment, device=CPU):
        for t in scored.nonzero().flatten().tolist():
            found[window.document][window.start, first + t] = float(nll[t])
    return found


@torch.no_grad()
def one_pass(model: torch.nn.Module, ids: np.ndarray) -> torch.Tensor:
    tokens = torch.tensor([[BOS, *ids.tolist()]])
    return -model(tokens[:, :-1])[0].log_softmax(-1)[0].gather(1, tokens[0, 1:, None]).squeeze(1)


@torch.no_grad()
def one_pass_of_all(model: torch.nn.Module) -> torch.Tensor:
    """What `one_pass` gives of every document [document, token]; behind the end of a shorter one is what says nothing."""
    tokens = torch.full((len(LENGTHS), 1 + max(LENGTHS)), BOS)
    for row, ids in zip(tokens, documents(), strict=True):
        row[1 : 1 + len(ids)] = torch.from_numpy(ids)
    return -model(tokens[:, :-1])[0].log_softmax(-1).gather(2, tokens[:, 1:, None]).squeeze(2)


@pytest.mark.parametrize("name", whole("model"))
def test_segments_are_one_pass_in_any_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, windows = kept(name, torch.float32), windows_of(LENGTHS, "carried", 0, 0)
    expected = [nll[: len(ids)] for nll, ids in zip(one_pass_of_all(model), documents(), strict=True)]
    for segment, at_once in ((23, 2**14), (23, 23), (1000, 2**14)):
        monkeypatch.setattr(segments, "TOKENS_AT_ONCE", at_once)
        for own, nll in zip(losses(model, documents(), windows, segment), expected, strict=True):
            assert_near(torch.tensor([own[0, t] for t in range(len(nll))]), nll, "float32 model")


@pytest.mark.parametrize("reading", ["reset", "sliding", "carried"])
@pytest.mark.parametrize(("context", "stride"), [(16, 16), (16, 5), (16, 1), (100, 3), (1, 1)])
def test_every_token_is_scored_once_and_sees_as_many_as_the_reading_says(reading: str, context: int, stride: int) -> None:
    windows = windows_of(LENGTHS, reading, context, stride)
    seen: list[dict[int, int]] = [{} for _ in LENGTHS]
    for window in windows:
        assert window.length <= context
        for t in range(window.unscored, window.length):
            assert seen[window.document].setdefault(window.start + t, t) == t
    assert [sorted(each) for each in seen] == [list(range(length)) for length in LENGTHS]
    if reading == "sliding":
        assert all(before >= min(place, context - stride) for each in seen for place, before in each.items())


def test_a_window_is_read_as_a_sequence_of_its_own() -> None:
    model, (ids, *_) = kept("gated_deltanet", torch.float32), documents()
    for reading, stride in (("reset", 0), ("sliding", 5)):
        windows = windows_of([len(ids)], reading, 16, stride)
        (found,) = losses(model, [ids], windows, 7)
        for window in windows:
            alone = one_pass(model, ids[window.start : window.start + window.length])
            for t in range(window.unscored, window.length):
                assert found[window.start, t] == pytest.approx(alone[t].item(), abs=1e-5)


class Live(TorchDispatchMode):
    """The most bytes of tensors that were made under it and are held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.held, self.most = dict[int, tuple[weakref.ref, int]](), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.held[tensor.untyped_storage().data_ptr()] = (weakref.ref(tensor), tensor.untyped_storage().nbytes())
        if len(self.held) > 256:
            self.held = {place: each for place, each in self.held.items() if each[0]() is not None}
        self.most = max(self.most, sum(size for held, size in self.held.values() if held() is not None))
        return made


def peak(name: str, length: int) -> int:
    model, (ids,) = kept(name, torch.float32), documents((length,))
    with Live() as live, torch.no_grad():
        for _ in read(model, [ids], windows_of([length], "carried", 0, 0), bos=BOS, segment=64, device=CPU):
            pass
    return live.most


@pytest.mark.parametrize("name", ["gated_deltanet", "mesanet", "hawk_mesa", "mamba2", "swa4"])
def test_memory_is_flat_in_length_where_the_state_is(name: str) -> None:
    assert peak(name, 1024) <= 1.05 * peak(name, 256)


def test_memory_grows_with_a_cache_of_keys_and_values() -> None:
    assert peak("transformer", 2048) > 2 * peak("transformer", 256)


def test_rows_are_the_sums_over_documents_and_ranges() -> None:
    texts, place = documents(), {"text": "t", "reading": "carried", "context": 0}
    model, bands = kept("gla", torch.float32), position_bands(max(LENGTHS))
    sums = Sums(len(texts), bands, of_windows=False)
    windows = windows_of(LENGTHS, "carried", 0, 0)
    for window, first, nll, scored in read(model, texts, windows, bos=BOS, segment=9, device=CPU):
        sums.add(window, first, nll, scored)
    found = rows(sums, place, Text("t", "test", tuple(texts), 3, BOS, ""), [8] * len(bands))
    each = [one_pass(model, ids).numpy() for ids in texts]
    (mean,) = [row for row in found if row.metric == "nll" and row.slice == place]
    (perplexity,) = [row for row in found if row.metric == "perplexity"]
    assert mean.value == pytest.approx(np.concatenate(each).mean(), abs=1e-5) and mean.count == sum(LENGTHS)
    assert mean.examples == pytest.approx([nll.mean() for nll in each], abs=1e-5) and mean.groups == (0, 1, 2, 3)
    assert perplexity.value == math.exp(mean.value)
    assert {row.metric: row.value for row in found if row.metric == "short_documents"} == {"short_documents": 3.0}
    for low, high in bands:
        banded = {row.metric: row for row in found if row.slice == {**place, "position_low": low, "position_high": high}}
        assert set(banded) == {"nll", "nll_so_far", "state_bytes"}
        reached = [nll for nll in each if len(nll) > low]
        for metric, first in (("nll", low), ("nll_so_far", 0)):
            row = banded[metric]
            assert row.value == pytest.approx(np.concatenate([nll[first:high] for nll in reached]).mean(), abs=1e-5)
            assert [math.isnan(value) for value in row.examples] == [len(nll) <= low for nll in each]


def test_a_perplexity_that_no_float_holds_is_infinite_beside_its_nll() -> None:
    sums, place = Sums(1, [(0, 4)], of_windows=False), {"text": "t", "reading": "carried", "context": 0}
    sums.nats[:], sums.counts[:] = 3200, 4
    found = rows(sums, place, Text("t", "test", (np.arange(4),), 0, BOS, ""), [8])
    values = {row.metric: row.value for row in found if row.slice == place}
    assert values["nll"] == 800 and values["perplexity"] == math.inf
    assert _score_rows(torch.full((1, 1, 4), 800.0), torch.ones(1, 1, 4, dtype=torch.bool), {})[1].value == math.inf


@pytest.fixture
def own(tmp_path: Path) -> DataSettings:
    (tmp_path / "own.txt").write_text("\n<|endoftext|>\n".join(f"own {i} " * 40 for i in range(20)))
    return compose_one(["data=text", f"data.path={tmp_path / 'own.txt'}", f"paths.cache={tmp_path / 'cache'}"]).config.task.data


def text_of(source: Path | str, own: DataSettings, **asked: int | None) -> Text:
    return read_text(str(source), own, **{"field": "text", "least": 1, "most": None, "tokens": 10**6, **asked})


def test_one_text_is_one_however_it_is_kept(tmp_path: Path, own: DataSettings) -> None:
    texts = [f"line {i}\n" * (i + 5) for i in range(4)]
    folder = tmp_path / "several"
    folder.mkdir()
    for i, text in enumerate(texts):
        (folder / f"{i}.txt").write_text(text)
    (folder / "notes.md").write_text("no document")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "whole.txt").write_text("<|endoftext|>\n".join(texts))
    (tmp_path / "packed.txt.gz").write_bytes(gzip.compress((tmp_path / "whole.txt").read_bytes()))
    pyarrow = pytest.importorskip("pyarrow.parquet")
    pyarrow.write_table(__import__("pyarrow").table({"text": texts}), tmp_path / "rows.parquet")
    sources = [folder, tmp_path / "rows.jsonl", tmp_path / "whole.txt", tmp_path / "packed.txt.gz", tmp_path / "rows.parquet"]
    found = [text_of(source, own) for source in sources]
    assert [each.name for each in found] == ["several", "rows", "whole", "packed", "rows"]
    assert {each.split for each in found} == {"test"} and len({each.digest for each in found}) == 1
    assert [bytes(ids.astype(np.uint8)).decode() for ids in found[0].documents] == texts


def test_a_data_set_is_read_in_its_held_out_part(own: DataSettings) -> None:
    found = text_of("text", own)
    task = task_of(compose_one(["data=text", f"data.path={own.path[0]}", f"data.cache={own.cache}", "task.seq_len=32"]).config)
    stream = task._parts["validation"].stream
    ids = stream.ids(np.array([0]), stream.count)[0]
    assert found.split == "validation" and len(found.documents) == (ids == task.vocabulary.bos).sum() + 1
    assert np.array_equal(np.concatenate(found.documents), ids[ids != task.vocabulary.bos])


def test_another_data_set_is_read_by_the_tokenizer_of_the_run(own: DataSettings) -> None:
    found = text_of("stdlib", own, tokens=1)
    held_out = heldout_stdlib_documents()[0]
    assert found.split == "validation" and bytes(found.documents[0].astype(np.uint8)).decode() == held_out


def test_ids_without_a_tokenizer_are_read_alone(tmp_path: Path) -> None:
    np.concatenate([np.full(50, i, dtype=np.uint16) for i in (1, 9, 2, 9, 3, 9, 4)]).tofile(tmp_path / "ids.npy")
    ids = [f"data.path={tmp_path / 'ids.npy'}", "data.vocab_size=10", "data.bos=9", "data.validation_fraction=0.6"]
    own = compose_one(["data=npy", *ids, f"paths.cache={tmp_path / 'cache'}"]).config.task.data
    found = text_of("npy", own)
    assert [set(each) for each in found.documents] == [{3}, {4}] and found.bos == 9
    for source in ("stdlib", tmp_path / "ids.npy"):
        with pytest.raises(ValueError, match="needs the tokenizer of the ids of data=npy: give data.tokenizer=FILE"):
            text_of(source, own)


def test_documents_are_the_first_that_are_long_enough(tmp_path: Path, own: DataSettings) -> None:
    (tmp_path / "mixed.txt").write_text("<|endoftext|>\n".join("x" * (length - 1) + "\n" for length in (10, 50, 20, 90, 60)))
    source = tmp_path / "mixed.txt"
    assert [len(ids) for ids in text_of(source, own).documents] == [10, 50, 20, 90, 60]
    found = text_of(source, own, least=40, most=40, tokens=80)
    assert [len(ids) for ids in found.documents] == [40, 40] and found.short == 2
    # One at least, and whole.
    assert [len(ids) for ids in text_of(source, own, tokens=1).documents] == [10]
    with pytest.raises(ValueError, match=r"no document has the 91 tokens of eval.contexts; the longest of 5 has 90"):
        text_of(source, own, least=91, most=91)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.txt", None, "there is no such file"),
        ("empty.txt", b"", "is empty"),
        ("cut.txt.gz", gzip.compress(b"some text " * 500, mtime=0)[:-9], "is not a whole .gz file"),
        ("cut.jsonl", b'{"text": "one"}\n{"text": "tw', "line 2 is not JSON"),
        ("cut.parquet", b"PAR1....", "is not a parquet table"),
        ("binary.txt", b"ab\0cd" * 9, "is binary"),
        ("other.jsonl", b'{"body": "one"}\n', "line 1 has no text in the field 'text'"),
    ],
)
def test_a_text_that_cannot_be_read_is_named_in_one_line(tmp_path, own, name, content, said) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as raised:
        text_of(tmp_path / name, own)
    assert str(raised.value).startswith(f"eval.texts={tmp_path / name}: ") and said in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_names_of_texts() -> None:
    assert [text_name(each) for each in ("stdlib", "./stdlib", "a/b.c.txt.xz", "books/", "x.jsonl")] == [
        *("stdlib", "stdlib", "b.c", "books", "x")
    ]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recurrent model, evaluated on a text of its own and on two files, one of which is not there."""
    folder = tmp_path_factory.mktemp("perplexity")
    (folder / "own.txt").write_text("\n<|endoftext|>\n".join(f"document {i} " * 30 for i in range(30)))
    (folder / "long.txt").write_text("\n<|endoftext|>\n".join("a long text " * count for count in (9, 40, 50)))
    return folder


def request(store: Path, *more: str) -> list[str]:
    data = ["data=text", f"data.path={store / 'own.txt'}", f"paths.cache={store / 'cache'}"]
    return ["model=gated_deltanet", *TINY, *STEPS, *data, "eval=perplexity", "eval.study_tokens=4096", *more]


def results(store: Path) -> Iterator[dict]:
    for path in sorted((store / "results").glob("runs/*/eval/perplexity-*.json")):
        yield json.loads(path.read_text())


def test_the_rest_goes_on_without_a_text_that_is_not_there(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = f"eval.texts=[text,{store / 'long.txt'},{store / 'missing.txt'}]"
    asked = [texts, "eval.contexts=[64,256,0]", "eval.readings=[carried,reset]", f"paths.results={store / 'results'}"]
    assert main(["run", *request(store, *asked)]) == 1
    said = capsys.readouterr().err
    before, _, behind = said.partition("starts")
    assert f"eval.texts={store / 'missing.txt'}: there is no such file, and no such data" in before
    assert "missing carried 64" in behind and "Traceback" not in said
    places = {tuple(made["settings"][key] for key in ("text", "reading", "context")): made for made in results(store)}
    readings = {("carried", 64), ("carried", 256), ("carried", 0), ("reset", 64), ("reset", 256)}
    assert set(places) == {(text, *each) for text in ("text", "long") for each in readings}
    whole = [row for row in places["long", "carried", 256]["rows"] if "position_low" not in row["slice"]]
    values = {row["metric"]: row for row in whole}
    # One of the three has fewer tokens than 256.
    assert values["short_documents"]["value"] == 1 and values["scored_tokens"]["examples"] == [256, 256]
    status = json.loads(next((store / "results").glob("runs/*/status.json")).read_text())
    assert {each["title"].split()[1] for each in status["failures"].values()} == {"missing"}


def test_no_name_of_a_result_holds_a_place(store: Path, tmp_path: Path) -> None:
    """Another folder, another number of tokens at once: the same stage; another text is another one."""
    other = tmp_path / "long.txt"
    other.write_text((store / "long.txt").read_text())
    asked = [plan(request(store, f"eval.texts=[{path}]", "eval.segment_tokens=64"))[0] for path in (store / "long.txt", other)]
    (third,) = plan(request(store, f"eval.texts=[{other}]", "eval.segment_tokens=100"))
    assert len({tuple(stage.stem for stage in run.stages) for run in (*asked, third)}) == 1
    assert all(str(tmp_path) not in stage.settings for stage in asked[1].stages)
    assert {json.loads(stage.options)["segment_tokens"] for stage in third.stages} == {100}
    other.write_text("a new text " * 500)
    read_text.cache_clear()
    (changed,) = plan(request(store, f"eval.texts=[{other}]"))
    assert not {stage.stem for stage in changed.stages} & {stage.stem for stage in third.stages}


def test_a_task_without_text_has_no_such_stage() -> None:
    composed = compose_one(["task=mqar", "eval=perplexity"])
    assert not planned_stages(composed.config, composed.compute, composed.evaluation, task_of(composed.config))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["eval.texts=[nowhere.txt]"], "eval.texts=nowhere.txt: there is no such file, and no such data"),
        (["eval.texts=[stdlb]"], "did you mean stdlib?"),
        (["eval.texts=[jsonl]"], "name the files themselves"),
        (["eval.texts=[a.txt,b/a.txt]"], "permitted are texts of different names, not two called a"),
        (["eval.contexts=[64]", "eval.readings=[sliding]", "eval.stride=65"], "permitted are whole numbers up to"),
        (["eval.contexts=[0]", "eval.readings=[reset]"], "permitted are whole numbers from 1 unless carried is among"),
        (["eval.readings=[carrried]"], "did you mean carried?"),
        (["eval.contexts=[-1]"], "eval.contexts[0]=-1 is out of range"),
        (["eval.contexts=[99999999]", "eval.texts=[text]"], "no document has the 99,999,999 tokens"),
    ],
)
def test_a_wrong_request_is_one_line_before_anything_is_made(store, tmp_path, arguments, said, capsys) -> None:
    assert main(["run", *request(store, *arguments), f"paths.results={tmp_path / 'results'}"]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1 and not (tmp_path / "results").exists(), error
