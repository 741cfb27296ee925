"""The token store: made once, in any number of processes, and gone on with after any end; read lazily, and checked."""

from __future__ import annotations

import gzip
import json
import os
import resource
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tasks.language import crew, index, remembered, store, text_files, units, worker
from tasks.language.pieces import is_held_out
from tasks.language.shards import FileWriter
from tasks.language.store import StoredPart, open_store
from tasks.language.task import Language
from tasks.language.vocabulary import Vocabulary
from tasks.progress import heard
from tests.tasks.composed import build
from tests.tasks.language.texts import read, text_data

DOCUMENTS = [f"document number {i}, naïve {'word ' * (i % 40)}\n" for i in range(300)]


@pytest.fixture
def small_units(monkeypatch):
    """Units of 2,000 bytes, so that a small text has several."""
    monkeypatch.setattr(units, "LEAST_BYTES", 2000)


def opened(path: Path, cache: Path, **changes: object) -> dict[str, StoredPart]:
    data = read(path, cache, **{"held_out": "each", **changes})
    return open_store(data, Vocabulary.of(data))


def stream(part: StoredPart) -> list[int]:
    return part.ids(np.array([0]), part.count)[0].tolist()


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("<|endoftext|>\n".join(DOCUMENTS))
    return path


def expected(part: str) -> list[int]:
    """The bytes of the documents of a part, 256 between any two: written down a second time."""
    chosen = [document for document in DOCUMENTS if is_held_out(document, 0.2) == (part == "validation")]
    return [i for number, document in enumerate(chosen) for i in ([256] * (number > 0) + list(document.encode()))]


def test_a_store_holds_the_documents_in_order_with_bos_between_any_two(text, tmp_path, small_units):
    parts = opened(text, tmp_path / "cache")
    assert parts["train"].num_blocks > 10
    for name, part in parts.items():
        assert stream(part) == expected(name) and part.count == len(expected(name)) > 500
        assert part.ids(np.array([3, 700]), 50).tolist() == [expected(name)[3:53], expected(name)[700:750]]
        places = np.concatenate([part.boundaries(block) for block in range(part.num_blocks)])
        assert places.tolist() == [-1, *(place for place, i in enumerate(expected(name)) if i == 256)]
        assert part.counts().tolist() == np.bincount(expected(name), minlength=257).tolist()
    assert parts["validation"].knows_bytes and not parts["train"].knows_bytes
    bytes_ = parts["validation"].num_bytes(np.array([0]), parts["validation"].count)[0]
    assert bytes_.tolist() == [int(i != 256) for i in expected("validation")]


def test_the_same_documents_have_the_same_fingerprint_in_any_format_and_any_number_of_processes(text, tmp_path, small_units):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    lines = "".join(json.dumps({"n": i, "text": document}) + "\n" for i, document in enumerate(DOCUMENTS))
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.read_bytes(), mtime=0))
    parquet.write_table(pyarrow.table({"text": DOCUMENTS}), tmp_path / "a.parquet", row_group_size=70)
    (tmp_path / "hub").mkdir()
    shutil.copy(tmp_path / "a.jsonl", tmp_path / "hub" / "train.jsonl")
    found = [
        opened(text, tmp_path / "one", workers=1),
        opened(text, tmp_path / "three", workers=3),
        opened(tmp_path / "a.txt.gz", tmp_path / "one"),
        opened(tmp_path / "a.jsonl", tmp_path / "one", name="jsonl"),
        opened(tmp_path / "a.jsonl.gz", tmp_path / "one", name="jsonl"),
        opened(tmp_path / "a.parquet", tmp_path / "one", name="parquet"),
        opened(tmp_path / "a.parquet", tmp_path / "one", name="fineweb_edu"),
        # The package `datasets` reads a folder as it reads a data set of the hub.
        opened(None, tmp_path / "one", name="fineweb_edu", repository=str(tmp_path / "hub"), subset=None),
    ]
    digests = {tuple((name, part.digest, part.count) for name, part in parts.items()) for parts in found}
    assert len(digests) == 1
    files = [{path.name: path.read_bytes() for path in (tmp_path / each).rglob("*.ids")} for each in ("three",)]
    serial = {path.name: path.read_bytes() for path in store_of(tmp_path / "one", found[0]).glob("*.ids")}
    assert files == [serial] and len(serial) > 20


def store_of(cache: Path, parts: dict[str, StoredPart]) -> Path:
    folder = parts["train"].folder
    assert folder.parent == cache
    return folder


def test_the_examples_are_those_of_the_text_that_is_read_whole(tmp_path, make_tokenizer_file, small_units):
    """With a validation file both ways give the same parts, so that packing, targets and bytes can be compared."""
    # A tokenizer reads the long document in two pieces.
    long = "a long line\n" * 25_000
    for name, documents in (("train", [DOCUMENTS[0], long, *DOCUMENTS[1:]]), ("held_out", DOCUMENTS[::7])):
        (tmp_path / name).write_text("<|endoftext|>\n".join(documents))
    for tokenizer in (None, make_tokenizer_file(["<s>"])):
        tasks = [task(tmp_path, tokenizer, held_out=held_out) for held_out in ("smallest", "each")]
        for split in ("train", "validation"):
            count = tasks[0].num_examples(split)
            one, other = (each.batch(split, range(count)) for each in tasks)
            assert count == tasks[1].num_examples(split) and (one.tokens == other.tokens).all()
            assert (one.targets == other.targets).all()
        rows = [each.references("validation", reach=None) for each in tasks]
        assert rows[0] == rows[1] and tasks[0].groups("validation") == tasks[1].groups("validation")


def task(folder: Path, tokenizer: str | None, **changes: object) -> Language:
    changes |= {"validation_path": str(folder / "held_out"), "tokenizer": tokenizer}
    data = text_data(folder / "train", folder / "cache", **changes)
    return build("language", data=data, seq_len=16, max_validation_examples=None, reset_at_bos=False)


def test_a_finished_store_is_opened_without_reading_a_shard_or_the_text(text, tmp_path, small_units, old_soon, monkeypatch):
    text = settled(text)
    before = opened(text, tmp_path / "cache")

    def reads(*arguments: object) -> None:
        raise AssertionError(arguments)

    for module, name in ((store, "make_store"), (index, "_digest"), (index, "read_values"), (text_files, "_digest")):
        monkeypatch.setattr(module, name, reads)
    after = opened(text, tmp_path / "cache")
    assert after["train"].digest == before["train"].digest and stream(after["train"]) == expected("train")


def settled(path: Path) -> Path:
    """The file once it is an old one: what was written just now may be written to again unseen."""
    deadline = os.stat(path).st_ctime + 2e-9 * remembered.SETTLED_NANOSECONDS
    time.sleep(max(0.0, deadline - time.time()))
    return path


@pytest.fixture
def old_soon(monkeypatch) -> None:
    """A file is an old one after a tenth of a second."""
    monkeypatch.setattr(remembered, "SETTLED_NANOSECONDS", 10**8)


@pytest.mark.parametrize("kind", ["ids", "bytes", "bos"])
def test_a_corrupted_shard_is_named_when_it_is_read_and_made_again_when_it_is_removed(text, tmp_path, small_units, kind):
    before = opened(text, tmp_path / "cache")["validation"].digest
    folder = opened(text, tmp_path / "cache")["validation"].folder
    shard = next(path for path in sorted(folder.glob(f"*.validation.{kind}")) if path.stat().st_size > 8)
    content = bytearray(shard.read_bytes())
    content[5] ^= 1
    shard.write_bytes(content)
    # Nothing is read when the store is opened.
    part = opened(text, tmp_path / "cache")["validation"]
    reads = {
        "ids": lambda: stream(part),
        "bytes": lambda: part.num_bytes(np.array([0]), part.count),
        "bos": lambda: [part.boundaries(block) for block in range(part.num_blocks)],
    }
    with pytest.raises(ValueError, match=f"{shard.name}' is corrupted: .* it again") as caught:
        reads[kind]()
    assert "\n" not in str(caught.value)
    shard.unlink()
    part = opened(text, tmp_path / "cache")["validation"]
    assert reads[kind]() is not None and part.digest == before and stream(part) == expected("validation")


def test_a_shard_that_is_cut_is_made_again_at_once(text, tmp_path, small_units):
    folder = opened(text, tmp_path / "cache")["train"].folder
    shard = folder / "000001.train.ids"
    shard.write_bytes(shard.read_bytes()[:-2])
    assert stream(opened(text, tmp_path / "cache")["train"]) == expected("train")


def test_a_store_that_was_copied_is_compared_once_with_what_was_written(text, tmp_path, small_units, old_soon, monkeypatch):
    folder = opened(text, tmp_path / "cache")["train"].folder
    shutil.copytree(folder, tmp_path / "other" / folder.name)
    for path in (tmp_path / "other" / folder.name).iterdir():
        settled(path)
    read_digests = []
    real = index._digest
    monkeypatch.setattr(index, "_digest", lambda path: read_digests.append(path.name) or real(path))
    for times in (1, 1):
        # As a process that follows, which knows what was written down.
        monkeypatch.setattr(remembered, "_known", {})
        part = opened(text, tmp_path / "other")["train"]
        assert stream(part) == expected("train") and len(read_digests) == times * part.num_blocks


def test_a_damaged_index_is_made_again_from_the_shards_that_are_there(text, tmp_path, small_units, monkeypatch):
    folder = opened(text, tmp_path / "cache")["train"].folder
    whole = (folder / "index.json").read_bytes()
    for damaged in (whole.replace(b'"lost":0', b'"lost":1', 1), whole[:-20], b""):
        (folder / "index.json").write_bytes(damaged)
        monkeypatch.setattr(crew.subprocess, "Popen", None)
        assert opened(text, tmp_path / "cache")["train"].count == len(expected("train"))
        assert (folder / "index.json").read_bytes() != damaged


def test_a_text_that_changes_while_it_is_tokenised_makes_no_store(text, tmp_path, small_units, monkeypatch):

    def listen(what: str, done: int, total: int) -> None:
        if done:
            text.write_text(text.read_text() + "more")

    with heard(listen), pytest.raises(ValueError, match="changed while (it was|they were) read"):
        opened(text, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("index.json"))


def test_a_text_that_changes_before_it_is_read_makes_no_store(text, tmp_path, small_units, monkeypatch):
    real = store.make_store

    def changed(*arguments: object, **others: object) -> object:
        text.write_text(text.read_text().replace("document", "DOCUMENT"))
        return real(*arguments, **others)

    monkeypatch.setattr(store, "make_store", changed)
    with pytest.raises(ValueError, match="data=text: its files have changed while they were read"):
        opened(text, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("index.json"))


@pytest.mark.parametrize(
    ("documents", "changes", "message"),
    [
        (["one"], {}, "no document is in the validation text; give data.validation_path"),
        (["x"], {"validation_fraction": 0.999}, "no document is in the train text"),
        (["кот " * 40], {"validation_fraction": 0.5}, "no document is in the"),
    ],
)
def test_a_part_without_a_document_is_named(tmp_path, documents, changes, message):
    path = tmp_path / "a.txt"
    path.write_text("<|endoftext|>\n".join(documents))
    with pytest.raises(ValueError, match=message):
        opened(path, tmp_path / "cache", **changes)


def test_a_fault_in_a_process_is_one_line_and_what_is_done_stays(tmp_path, small_units):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": document}) for document in DOCUMENTS]
    path.write_text("\n".join([*lines, '{"body": 1}']))
    with pytest.raises(ValueError, match="a.jsonl' line 301 has no text in the field 'text'") as caught:
        opened(path, tmp_path / "cache", name="jsonl")
    assert "\n" not in str(caught.value)
    assert len(list((tmp_path / "cache").rglob("0*.json"))) > 10 and not list((tmp_path / "cache").rglob("*.tmp"))


class Beside:
    """What stands for a process that tokenises: its work in a thread. A process would import `datasets`, which takes a second."""

    def __init__(self, command: list[str], **options: object) -> None:
        (jobs, given), (told, out) = os.pipe(), os.pipe()
        self.stdin, self.stdout = os.fdopen(given, "wb"), os.fdopen(told, "rb")
        self.thread = threading.Thread(target=self.serve, args=(jobs, out))
        self.thread.start()

    @staticmethod
    def serve(jobs: int, out: int) -> None:
        with open(jobs, "rb") as lines, open(out, "wb", buffering=0) as answers:
            worker.serve(lines, answers)

    def kill(self) -> None:
        self.stdin.close()

    def wait(self) -> int:
        self.thread.join()
        return 0


def test_a_data_set_that_cannot_be_reached_or_has_no_such_text_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "train.jsonl").write_text('{"text": "a"}\n{"text": null}\n')
    (tmp_path / "hub" / "test.jsonl").write_text('{"body": "a"}\n')
    local = {"repository": str(tmp_path / "hub"), "subset": None}
    faults = [
        ({}, "data.repository='HuggingFaceFW/fineweb-edu' can't be read: .*; it needs the network once; files that are here"),
        (local, "row 1 of file 0 has no text in the field 'text': there is NoneType"),
        (local | {"text_field": "body"}, "row 0 of file 0 has no text in the field 'body': its fields are text"),
        (local | {"train_split": "trian"}, "can't be read: .*trian"),
    ]
    # A process reads a folder of the hub in the test of fingerprints above.
    monkeypatch.setattr(crew.subprocess, "Popen", Beside)
    for changes, message in faults:
        with pytest.raises(ValueError, match=message) as caught:
            opened(None, tmp_path / "cache", name="fineweb_edu", **changes)
        assert "\n" not in str(caught.value)


TABLE_FAULTS = [
    ({"text": ["a", None]}, {}, "has no text in the field 'text' of row 1, counted from 0"),
    ({"text": [1, 2]}, {}, "has int64 in the field 'text', permitted is text"),
    ({"txt": ["a"]}, {}, "has no field 'text'; did you mean txt\\?; its fields are txt"),
    (None, {}, "is not a parquet table"),
]


@pytest.mark.parametrize(("columns", "changes", "message"), TABLE_FAULTS)
def test_a_table_without_text_is_named(tmp_path, columns, changes, message):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    if columns is None:
        (tmp_path / "a.parquet").write_bytes(b"text")
    else:
        parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet", row_group_size=1)
    with pytest.raises(ValueError, match=f"a.parquet' {message}") as caught:
        opened(tmp_path / "a.parquet", tmp_path / "cache", name="parquet", **changes)
    assert "\n" not in str(caught.value)


def test_a_table_with_a_damaged_page_says_why(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": DOCUMENTS}), path := tmp_path / "a.parquet")
    content = bytearray(path.read_bytes())
    content[4:40] = bytes(255 - byte for byte in content[4:40])
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.parquet' cannot be read: \w{5}") as caught:
        opened(path, tmp_path / "cache", name="parquet")
    assert "\n" not in str(caught.value)


def test_a_shard_that_finds_no_room_is_named_and_leaves_nothing(tmp_path):
    writer = FileWriter(tmp_path, "000000.train.ids")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    try:
        writer.write(np.zeros(2**15 - 8, dtype="<u2"))
        with pytest.raises(OSError, match=r"File too large: '.*/000000\.train\.ids'"):
            for _ in range(2**12):
                writer.write(np.zeros(16, dtype="<u2"))
        writer.discard()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_lines_of_wikitext_are_articles_from_heading_to_heading(tmp_path):
    lines = ["", " = One = \n", "", " = = Part = = \n", " text of one \n", " = Two = \n", " text of two \n"] * 3
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "held out"}))
    data = {"name": "wikitext", "validation_path": str(tmp_path / "b.jsonl")}
    train = opened(tmp_path / "a.jsonl", tmp_path / "cache", **data)["train"]
    documents = bytes(0 if i == 256 else i for i in stream(train)).decode().split("\0")
    one, two = " = One = \n\n = = Part = = \n text of one \n", " = Two = \n text of two \n"
    # An empty line in front of a heading belongs to the article above; one that is alone is no article.
    assert documents == [one, two + "\n", one, two + "\n", one, two]
