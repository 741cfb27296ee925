"""A large text read unit by unit: the documents are those of the text read whole, wherever it is cut."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tasks.language import pieces, text_stream, tokens, units
from tasks.language.documents import read_fragments
from tasks.language.pieces import batches, is_held_out
from tasks.language.text_files import text_documents
from tasks.language.text_stream import Fragment
from tasks.language.units import LinesUnit, TextUnit, local_units, unit_bytes
from tests.tasks.language.texts import read

TEXT = (
    "\ufefffirst\nnaïve <|endoftext|> within\n<|endoftext|>\n \n<|endoftext|>\n<|endoftext|>\r\n"
    "second — 東京\r\nline\n<|endoftext|>\r\nthird" + "x" * 60 + "\n<|endoftext|>\nlast\n\n\nof all\n<|endoftext|>"
)


def documents(path: Path, unit_size: int, **changes: object) -> list[str]:
    data = read(path, path.parent, held_out="each", **changes)
    found: list[str] = []
    for unit in units._units(data.path, data, None):
        size = unit.size
        assert 0 < size <= unit_size
        for fragment in read_fragments(unit, data.rows):
            if fragment.begins:
                found.append("")
            found[-1] += fragment.text
    return found


@pytest.mark.parametrize("fragment_bytes", [2**22, 20])
@pytest.mark.parametrize("read_bytes", [2**20, 3])
def test_documents_of_text_are_the_same_wherever_it_is_cut(tmp_path, monkeypatch, read_bytes, fragment_bytes):
    path = tmp_path / "a.txt"
    path.write_text(TEXT, newline="")
    expected = text_documents([str(path)])
    assert len(expected) == 4 and expected[-1] == "last\n\n\nof all\n"
    monkeypatch.setattr(text_stream, "READ_BYTES", read_bytes)
    monkeypatch.setattr(text_stream, "FRAGMENT_BYTES", fragment_bytes)
    for size in range(1, len(TEXT.encode()) + 2):
        monkeypatch.setattr(units, "LEAST_BYTES", size)
        assert documents(path, size) == expected, size


@pytest.mark.parametrize("size", [1, 2, 7, 30, 10_000])
def test_documents_of_json_lines_are_the_same_wherever_the_file_is_cut(tmp_path, monkeypatch, size):
    path = tmp_path / "a.jsonl"
    texts = ["one", "two\nlines", "  ", "naïve 東京", "five " * 9]
    lines = [json.dumps({"id": i, "body": text, "n": [1]}, ensure_ascii=bool(i % 2)) for i, text in enumerate(texts)]
    path.write_text("\n".join([*lines[:3], "", *lines[3:]]))
    monkeypatch.setattr(units, "LEAST_BYTES", size)
    monkeypatch.setattr(text_stream, "READ_BYTES", 11)
    expected = [text for text in texts if text.strip()]
    assert documents(path, size, name="jsonl", text_field="body") == expected
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    assert documents(packed, 10_000, name="jsonl", text_field="body") == expected


def test_units_are_many_enough_to_share_and_few_enough_to_keep():
    assert unit_bytes(1) == unit_bytes(2**34) == 2**24 and unit_bytes(2**34 + 1) == 2**25
    assert 2**44 // unit_bytes(2**44) == 2**10


def test_pieces_of_a_document_in_fragments_are_those_of_the_whole(monkeypatch):
    monkeypatch.setattr(tokens, "PIECE_CHARACTERS", 10)
    monkeypatch.setattr(pieces, "PIECE_CHARACTERS", 10)
    text = "ab\ncdefghijklmnop\nqrs\n\ntuvwxyz0123456789"
    expected = [piece for _, piece in tokens._pieces(text)]
    for size in range(1, len(text) + 1):
        cuts = range(0, len(text), size)
        fragments = [Fragment(text[i : i + size], i == 0, i + size >= len(text)) for i in cuts]
        (batch,) = batches(fragments, "train", 0.5)
        assert [piece.text for piece in batch] == expected
        assert [piece.begins for piece in batch] == [True] + [False] * (len(expected) - 1)


def test_a_document_is_held_out_by_its_beginning_alone():
    texts = [f"document {i}" for i in range(4000)]
    held_out = {fraction: {text for text in texts if is_held_out(text, fraction)} for fraction in (0.1, 0.3)}
    assert held_out[0.1] < held_out[0.3] and 0.08 < len(held_out[0.1]) / 4000 < 0.12
    long = "x" * 2**16
    assert is_held_out(long, 0.5) == is_held_out(long + "more", 0.5)
    assert {is_held_out(f"{i}{long}", 0.5) for i in range(20)} == {True, False}


FAULTS = [
    ("a.txt", b"text\n\xff\xfe more", "'.*a.txt' is not UTF-8 text \\(at byte 5\\)"),
    ("a.txt", b"text\0", "is binary, not text \\(a zero byte at offset 4\\)"),
    ("a.txt", "text".encode("utf-16"), "is UTF-16 or UTF-32 text"),
    ("a.txt", b"one\n <|endoftext|>\ntwo", "has the line ' <|endoftext|>', which separates no documents"),
    ("a.txt", b"one\rtwo\r" * 20, "has line ends of CR alone"),
    ("a.txt", b'{"text": "a"}\n{"text": "b"}\n', "looks like JSON, not text: data=jsonl reads JSON lines"),
    ("a.jsonl", b"text", "looks like JSON lines, not text"),
    ("a.txt.gz", gzip.compress(b"text " * 999, mtime=0)[:-9], "is not a whole .gz file: it ends too early"),
]


@pytest.mark.parametrize(("name", "content", "message"), FAULTS)
def test_what_is_no_text_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        documents(tmp_path / name, 2**24)
    assert "\n" not in str(caught.value)


LINES = [
    (b'{"text": "a"}\n{"body": "b"}\n', "line 2 has no text in the field 'text': Object missing required field text"),
    (b'{"text": "a"}\n\n{"text": 7}\n', "line 3 has no text in the field 'text': Expected str, got int"),
    (b'{"text": "a"}\n{"text": "b"\n', "line 2 is not JSON in UTF-8: Input data was truncated"),
    (b'{"text": "\xff\xff"}\n', "line 1 is not JSON in UTF-8"),
    (b'{"text": "a"}\n{"text": "b", "x": ' + 10**5 * b"[" + b"\n", "line 2 is not JSON in UTF-8: it is nested too deeply"),
    (b'["text"]\n', "line 1 has no text in the field 'text': Expected object, got array"),
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize(("content", "message"), LINES, ids=range(len(LINES)))
def test_a_line_without_text_is_named_with_its_number(tmp_path, monkeypatch, name, content, message):
    monkeypatch.setattr(units, "LEAST_BYTES", 16)
    (tmp_path / name).write_bytes(gzip.compress(content, mtime=0) if name.endswith(".gz") else content)
    with pytest.raises(ValueError, match=f"{name}' {message}") as caught:
        documents(tmp_path / name, 2**24, name="jsonl")
    assert "\n" not in str(caught.value)


def test_a_line_that_does_not_end_is_refused_before_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.language.documents.MOST_LINE_BYTES", 100)
    monkeypatch.setattr(text_stream, "READ_BYTES", 50)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "' + b"b" * 1000)
    with pytest.raises(ValueError, match="has a line of more than 100 bytes, which begins at byte 14"):
        documents(tmp_path / "a.jsonl", 2**24, name="jsonl")


def test_a_validation_file_is_of_one_part_and_a_file_that_is_empty_is_named(tmp_path):
    for name, text in (("a", "one"), ("b", "two"), ("c", "")):
        (tmp_path / f"{name}.txt").write_text(text)
    data = read(tmp_path / "a.txt", tmp_path, held_out="each", validation_path=str(tmp_path / "b.txt"))
    assert [(type(each), each.part) for each in local_units(data)] == [(TextUnit, "train"), (TextUnit, "validation")]
    with pytest.raises(ValueError, match="c.txt' is empty"):
        local_units(read(tmp_path / "c.txt", tmp_path, held_out="each"))
    jsonl = tmp_path / "a.jsonl"
    jsonl.write_text('{"text": "a"}')
    assert isinstance(local_units(read(jsonl, tmp_path, name="wikitext"))[0], LinesUnit)
    with pytest.raises(ValueError, match="a.txt' ends in '.txt'; permitted with data=pg19 are .parquet, .jsonl"):
        local_units(read(tmp_path / "a.txt", tmp_path, name="pg19"))
