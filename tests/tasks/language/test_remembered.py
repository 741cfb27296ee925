"""A file is read once to tell what it holds, and again when it may hold something else."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from tasks.language import remembered, tokens
from tasks.language.remembered import FileIdentity
from tasks.language.text_files import files_digest, most_bytes
from tests.tasks.composed import build
from tests.tasks.language.texts import text_data


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The files whose digest is computed; what was written is old, and this process remembers nothing."""
    found: list[str] = []

    def digest(file: Path, limit: int) -> str:
        found.append(file.name)
        return hashlib.sha256(file.read_bytes()).hexdigest()

    monkeypatch.setattr("tasks.language.text_files._digest", digest)
    monkeypatch.setattr(remembered, "SETTLED_NANOSECONDS", 0)
    monkeypatch.setattr(remembered, "_known", {})
    return found


def digest(file: Path, cache: Path) -> str:
    return files_digest([str(file)], limit=most_bytes(), cache=cache)


def test_a_text_is_hashed_once_by_a_process_and_by_those_that_follow(tmp_path, reads, monkeypatch):
    (file := tmp_path / "a.txt").write_text("text")
    first = digest(file, tmp_path / "cache")
    assert digest(file, tmp_path / "cache") == first and reads == ["a.txt"] and not (tmp_path / "cache").exists()
    remembered.keep(file, tmp_path / "cache")
    monkeypatch.setattr(remembered, "_known", {})
    assert digest(file, tmp_path / "cache") == first and reads == ["a.txt"]


CHANGES = {
    "other content of one size": lambda file: file.write_text("taxt"),
    "times that were set back": lambda file: (
        stat := file.stat(),
        file.write_text("taxt"),
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns)),
    ),
    "another file of its name and times": lambda file: (
        shutil.copy2(file, other := file.with_name("b.txt")),
        os.replace(other, file),
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_file_that_was_touched_is_read_again(tmp_path, reads, change, monkeypatch):
    (file := tmp_path / "a.txt").write_text("text")
    digest(file, tmp_path)
    remembered.keep(file, tmp_path)
    for known in (dict(remembered._known), {}):
        monkeypatch.setattr(remembered, "_known", known)
        change(file)
        assert digest(file, tmp_path) == digest(shutil.copy(file, tmp_path / "c.txt"), tmp_path)
        assert reads.count("a.txt") == 2
        reads.remove("a.txt")


def test_a_file_that_was_written_just_now_is_not_remembered(tmp_path, reads, monkeypatch):
    monkeypatch.setattr(remembered, "SETTLED_NANOSECONDS", 10**12)
    (file := tmp_path / "a.txt").write_text("text")
    assert digest(file, tmp_path) == digest(file, tmp_path) and reads == ["a.txt", "a.txt"]
    remembered.keep(file, tmp_path)
    assert not (tmp_path / "digests").exists()


def test_half_a_note_is_none(tmp_path, reads, monkeypatch):
    (file := tmp_path / "a.txt").write_text("text")
    first = digest(file, tmp_path)
    remembered.keep(file, tmp_path)
    (note,) = (tmp_path / "digests").iterdir()
    whole = note.read_bytes()
    wrong = whole.replace(b'"digest":"', b'"digest":"0', 1)
    for content in (whole[:-9], wrong, b"", b"[]"):
        note.write_bytes(content)
        monkeypatch.setattr(remembered, "_known", {})
        reads.clear()
        assert digest(file, tmp_path) == first and reads == ["a.txt"]


def test_a_task_keeps_the_digest_of_its_text_with_the_tokens(tmp_path, reads, monkeypatch):
    (file := tmp_path / "a.txt").write_text("<|endoftext|>\n".join(f"document {i}\n" for i in range(60)))
    data = text_data(file, tmp_path / "cache")
    made = build("language", data=data, seq_len=8, max_validation_examples=None, reset_at_bos=False)
    made.prepare()
    assert reads.count("a.txt") == 1 and FileIdentity.of(file).is_settled
    monkeypatch.setattr(remembered, "_known", {})
    tokens._unkept.clear()
    again = build("language", data=data, seq_len=8, max_validation_examples=None, reset_at_bos=False)
    assert again.fingerprint() == made.fingerprint() and reads.count("a.txt") == 1


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, reads):
    (file := tmp_path / "a.txt").write_text("<|endoftext|>\n".join(f"document {i}\n" for i in range(60)))
    (tmp_path / "cache").write_text("a file")
    data = text_data(file, tmp_path / "cache" / "below")
    made = build("language", data=data, seq_len=8, max_validation_examples=None, reset_at_bos=False)
    made.prepare()
    assert made.num_examples("train") and reads == ["a.txt"]
