"""Files of ids that others have made, read where they are."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from conf.settings import Refusal
from tasks.language import ids_files
from tasks.language.store import StoredPart, open_store
from tasks.language.task import Language
from tasks.language.vocabulary import Vocabulary
from tests.tasks.composed import build
from tests.tasks.language.texts import read, text_data

BOS = 50256
FIRST, SECOND = [BOS, 1, 2, 3, BOS, 4, 5], [6, BOS, 7, 8, 9, BOS, 10, 11, 12, 13]


def write_bin(path: Path, ids: list[int], *, magic: int = 20240520, version: int = 1, count: int | None = None) -> Path:
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(ids) if count is None else count
    path.write_bytes(header.tobytes() + np.array(ids, dtype="<u2").tobytes())
    return path


def write_raw(path: Path, ids: list[int], dtype: str = "<u4") -> Path:
    path.write_bytes(np.array(ids, dtype=dtype).tobytes())
    return path


def opened(path: object, cache: Path, **changes: object) -> dict[str, StoredPart]:
    data = read(path, cache, **{"name": "bin", **changes})
    return open_store(data, Vocabulary.of(data))


def stream(part: StoredPart) -> list[int]:
    return part.ids(np.array([0]), part.count)[0].tolist()


@pytest.mark.parametrize("unit_ids", [2**26, 3])
def test_the_end_is_held_out_from_the_first_bos_in_its_share_on(tmp_path, monkeypatch, unit_ids):
    monkeypatch.setattr(ids_files, "UNIT_IDS", unit_ids)
    write_bin(tmp_path / "a.bin", FIRST)
    write_bin(tmp_path / "b.bin", SECOND)
    # A third of 17 ids are the last 6, of which the first BOS is the fifth from the end.
    parts = opened(f"{tmp_path}/*.bin", tmp_path / "cache", validation_fraction=1 / 3)
    assert stream(parts["train"]) == [1, 2, 3, BOS, 4, 5, 6, BOS, 7, 8, 9] and stream(parts["validation"]) == [10, 11, 12, 13]
    assert parts["train"].counts()[BOS] == 2 and parts["validation"].counts().sum() == 4
    assert not list((tmp_path / "cache").rglob("*.ids")), "nothing is copied"


def test_files_behind_the_first_that_is_held_out_are_held_out_too(tmp_path):
    for name, ids in (("a", FIRST), ("b", SECOND), ("c", [14, 15])):
        write_bin(tmp_path / f"{name}.bin", ids)
    # 9 of 19 ids begin at the fourth of the second file.
    parts = opened(f"{tmp_path}/*.bin", tmp_path / "cache", validation_fraction=9 / 19)
    assert stream(parts["train"]) == [*FIRST[1:], *SECOND[:5]]
    assert stream(parts["validation"]) == [*SECOND[6:], 14, 15]


def test_a_validation_file_is_held_out_whole(tmp_path):
    train, held_out = write_bin(tmp_path / "a.bin", FIRST), write_bin(tmp_path / "b.bin", SECOND)
    parts = opened(train, tmp_path / "cache", validation_path=str(held_out))
    # BOS in front of all begins no text between two.
    assert stream(parts["train"]) == FIRST[1:] and stream(parts["validation"]) == SECOND


@pytest.mark.parametrize("kind", ["raw uint32", "raw uint16", "header uint16", "header uint32"])
def test_npy_files_are_read_with_or_without_a_header(tmp_path, kind):
    path, dtype = tmp_path / "a.npy", "<u2" if kind.endswith("16") else "<u4"
    if kind.startswith("raw"):
        write_raw(path, FIRST + SECOND, dtype)
    else:
        np.save(path, np.array(FIRST + SECOND, dtype=dtype))
    changes = {"vocab_size": BOS + 1 if dtype == "<u2" else 100278, "bos": BOS}
    parts = opened(path, tmp_path / "cache", name="npy", validation_fraction=1 / 3, **changes)
    assert stream(parts["train"]) == (FIRST + SECOND)[1:-5]


def test_ids_make_examples_without_bytes_or_a_tokenizer(tmp_path):
    ids = [i for document in range(60) for i in (BOS, *range(document, document + 7))]
    data = text_data(write_bin(tmp_path / "a.bin", ids), tmp_path / "cache", name="bin")
    task = build("language", data=data, seq_len=4, max_validation_examples=None, reset_at_bos=False)
    assert isinstance(task, Language) and task.tokenizer is None and task.vocab_size == BOS + 1
    batch = task.batch("train", [0, 1])
    assert batch.tokens.tolist() == [[BOS, 0, 1, 2], [BOS, 4, 5, 6]]
    assert batch.targets.tolist() == [[0, 1, 2, 3], [4, 5, 6, -100]]
    assert task.references("validation", reach=None) == []


BROKEN = [
    (lambda p: write_bin(p, FIRST, magic=1), {}, "is no .bin file of ids: such a file has 256 int32 in front, 20240520, 1"),
    (lambda p: write_bin(p, FIRST, version=2), {}, "is no .bin file of ids"),
    (
        lambda p: write_bin(p, FIRST, count=9),
        {},
        "has 1,038 bytes, and 1,042 with the 9 ids that its header says: it is not whole",
    ),
    (lambda p: p.write_bytes(b"short"), {}, "is no .bin file of ids"),
    (lambda p: write_bin(p, []), {}, "is empty"),
    (lambda p: write_bin(p, [BOS, 60000, BOS, 1]), {}, "has the id 60000 near id 0, permitted are ids below data.vocab_size"),
    (
        lambda p: write_raw(p, FIRST),
        {"name": "npy", "vocab_size": 60000, "bos": 5},
        "has a 0 behind every id: .* data.dtype=uint32",
    ),
    (
        lambda p: p.write_bytes(b"abc"),
        {"name": "npy", "vocab_size": 60000, "bos": 5},
        "has 3 bytes, which is no whole number of uint16",
    ),
    (lambda p: np.save(p, np.ones(9)), {"name": "npy"}, "holds float64 \\(9,\\), permitted is one row of uint16 or uint32"),
    (lambda p: np.save(p, np.array([{}])), {"name": "npy"}, "holds object \\(1,\\), permitted is one row"),
    (lambda p: np.save(p, np.ones((2, 2), "<u2")), {"name": "npy"}, "holds uint16 \\(2, 2\\)"),
    (lambda p: np.save(p, np.ones(9, "<u2")), {"name": "npy", "dtype": "uint32"}, "permitted is one row of uint32"),
    (
        lambda p: p.write_bytes(b"\x93NUMPY\1\0\x10\0{'shape': (10,  \n" + bytes(20)),
        {"name": "npy"},
        "a.npy' has no header of NumPy: EOF in multi-line statement",
    ),
    (lambda p: write_bin(p, [1, 2, 3, 4, 5, 6, 7, 8]), {}, "no document is in the validation text; give data.validation_path"),
]


@pytest.mark.parametrize(("make", "changes", "message"), BROKEN)
def test_a_file_that_holds_no_ids_of_the_vocabulary_is_named(tmp_path, make, changes, message):
    make(path := tmp_path / ("a.npy" if "name" in changes else "a.bin"))
    with pytest.raises(ValueError, match=message) as caught:
        opened(path, tmp_path / "cache", **changes)
    assert "\n" not in str(caught.value)


def test_ids_that_change_are_read_again_and_their_store_is_another(tmp_path):
    path = write_bin(tmp_path / "a.bin", FIRST + SECOND)
    before = opened(path, tmp_path / "cache", validation_fraction=1 / 3)
    time.sleep(0.02)
    write_bin(path, [i if i != 2 else 3 for i in FIRST + SECOND])
    with pytest.raises(ValueError, match="a.bin' has changed since the command was started"):
        stream(before["train"])
    after = opened(path, tmp_path / "cache", validation_fraction=1 / 3)
    assert stream(after["train"])[1] == 3 and after["train"].digest != before["train"].digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": None}, "data.vocab_size=null .* whole numbers with files of ids"),
        ({"bos": None}, "data.bos=null"),
        ({"bos": 50257}, "data.bos=50257 is out of range, permitted are ids below data.vocab_size=50257"),
    ],
)
def test_ids_without_a_vocabulary_are_refused(tmp_path, changes, message):
    with pytest.raises(Refusal, match=message):
        read(tmp_path / "a.bin", tmp_path, name="bin", **changes)


def test_a_tokenizer_with_more_ids_than_the_files_is_refused(tmp_path, make_tokenizer_file):
    data = read(tmp_path / "a.bin", tmp_path, name="bin", vocab_size=100, bos=5, tokenizer=make_tokenizer_file(["<s>"]))
    with pytest.raises(ValueError, match="data.vocab_size=100 is out of range, permitted with data.tokenizer=.* from 300"):
        Vocabulary.of(data)
