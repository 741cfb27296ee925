from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from tasks.language import tokens
from tasks.language.tokenizer import ByteTokenizer, load_tokenizer
from tasks.language.tokens import StoredTokens, encode_documents, load_tokens
from tasks.progress import heard

DOCUMENTS = ["first é\n", "second", "third\n" * 50]
BYTES = ByteTokenizer()


def load(folder, documents=DOCUMENTS, source=("x",), seq_len=4, tokenizer=BYTES) -> StoredTokens:
    return load_tokens(str(folder), source=source, documents=lambda: documents, tokenizer=tokenizer, seq_len=seq_len)


def keep(folder, **changes) -> StoredTokens:
    made = load(folder, **changes)
    made.keep()
    return made


def from_cache(folder, **changes) -> StoredTokens:
    arguments = {"source": ("x",), "tokenizer": BYTES, "seq_len": 4} | changes
    return load_tokens(str(folder), documents=unexpected, **arguments)


def unexpected():
    raise AssertionError("the text was tokenised again")


def cache_files(folder, suffix):
    return sorted(path for path in folder.iterdir() if path.suffix == suffix)


def all_of(made: StoredTokens) -> np.ndarray:
    return np.concatenate(list(made.records.chunks()))


def test_bos_stands_between_documents_only(tmp_path):
    records = load(tmp_path).records
    first, second, third = map(BYTES.encode, DOCUMENTS)
    assert records["id"].tolist() == [*first, BYTES.bos, *second, BYTES.bos, *third]
    assert (records["num_bytes"] == (records["id"] != BYTES.bos)).all()


@pytest.mark.parametrize("piece", [1, 7, 100])
def test_cutting_into_pieces_and_batches_changes_no_byte(monkeypatch, piece):
    whole = np.concatenate(list(encode_documents(DOCUMENTS, BYTES)))
    monkeypatch.setattr(tokens, "PIECE_CHARACTERS", piece)
    monkeypatch.setattr(tokens, "BATCH_CHARACTERS", 2 * piece)
    assert (np.concatenate(list(encode_documents(DOCUMENTS, BYTES))) == whole).all()


def test_nothing_is_written_before_it_is_kept_and_the_text_is_tokenised_once(tmp_path):
    folder = tmp_path / "a" / "cache"
    first = load(folder)
    assert list(tmp_path.iterdir()) == []
    # Another run of the same request.
    assert from_cache(folder) is first
    first.keep()
    assert len(list(folder.iterdir())) == 2
    again = from_cache(folder)
    assert again is not first and again.digest == first.digest and (all_of(again) == all_of(first)).all()
    again.keep()
    assert len(list(folder.iterdir())) == 2


def test_what_is_not_kept_is_forgotten(tmp_path):
    load(tmp_path)
    gc.collect()
    with pytest.raises(AssertionError, match="tokenised again"):
        from_cache(tmp_path)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("read_records", [1, 3, 2**20])
def test_records_are_those_of_the_text_however_they_are_read(tmp_path, monkeypatch, kept, read_records):
    monkeypatch.setattr(tokens, "READ_RECORDS", read_records)
    records = (keep if kept else load)(tmp_path).records
    expected = np.concatenate(list(encode_documents(DOCUMENTS, BYTES)))
    assert records.count == len(expected)
    for field in ("id", "num_bytes"):
        assert records[field].tolist() == expected[field].tolist()
    starts = np.array([5, 0, len(expected) - 7])
    assert (records.runs(starts, 7) == expected[starts[:, None] + np.arange(7)]).all()


def test_another_source_or_tokenizer_is_another_file(tmp_path, make_tokenizer_file):
    keep(tmp_path)
    keep(tmp_path, source=("y",))
    keep(tmp_path, tokenizer=load_tokenizer(make_tokenizer_file([])))
    assert len(cache_files(tmp_path, ".tokens")) == 3


@pytest.mark.parametrize(
    "damage",
    ["truncated", "flipped", "digest lost", "digest empty", "digest too long", "digest binary", "counts", "pipe", "folder"],
)
def test_a_damaged_cache_is_made_again(tmp_path, damage):
    whole = keep(tmp_path)
    (path,), (digest,) = cache_files(tmp_path, ".tokens"), cache_files(tmp_path, ".sha256")
    content = path.read_bytes()
    signal.alarm(20)
    if damage in ("truncated", "flipped"):
        path.write_bytes(content[:-5] if damage == "truncated" else content[:8] + b"\xff" + content[9:])
    elif damage == "digest lost":
        digest.unlink()
    elif damage == "counts":
        said, lost, *rest = digest.read_text().split()
        digest.write_text(" ".join([said, str(int(lost) + 7), *rest]))
    elif damage == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif damage == "folder":
        digest.unlink()
        digest.mkdir()
    else:
        digest.write_bytes({"empty": b"", "long": digest.read_bytes() + b" 1", "binary": b"\xff\0"}[damage.split()[-1]])
    again = load(tmp_path)
    assert again.digest == whole.digest and (all_of(again)["id"] == BYTES.encode(DOCUMENTS[0])[0])[0]
    again.keep()
    signal.alarm(0)
    if damage != "folder":
        assert path.read_bytes() == content and from_cache(tmp_path).digest == whole.digest


def test_a_file_that_is_cut_while_it_is_read_is_an_error_and_no_end(tmp_path):
    """A mapping would end the process with SIGBUS."""
    keep(tmp_path, documents=["text " * 20_000])
    made = from_cache(tmp_path)
    (path,) = cache_files(tmp_path, ".tokens")
    assert made.records.runs([90_000], 4)["id"].tolist() == [BYTES.encode("text ")[:4]]
    os.truncate(path, 40_000)
    assert made.records.runs([9_000], 4)["id"].tolist() == [BYTES.encode("text ")[:4]]
    for read in (lambda: made.records.runs([9_000, 90_000], 4), lambda: made.records["id"], lambda: all_of(made)):
        with pytest.raises(OSError, match=f"{path}' was cut while it was read; it is made again") as caught:
            read()
        assert "\n" not in str(caught.value)
    assert keep(tmp_path, documents=["text " * 20_000]).digest == made.digest
    assert from_cache(tmp_path).digest == made.digest


@pytest.mark.parametrize("obstacle", ["a file", "no permission", "full"])
def test_a_cache_that_cannot_be_written_is_said_once_and_stops_nothing(tmp_path, monkeypatch, caplog, obstacle):
    folder = tmp_path / obstacle
    if obstacle == "a file":
        folder.write_text("")
    else:
        error = OSError(28, "No space left") if obstacle == "full" else PermissionError(13, "Permission denied")

        def refuse(*args, **settings):
            raise error

        monkeypatch.setattr(tokens, "write_atomically", refuse)
    made = load(folder)
    for _ in range(3):
        made.keep()
    (line,) = caplog.messages
    assert f"paths.cache='{folder}'" in line and "\n" not in line
    assert {"a file": "Not a directory", "no permission": "Permission denied", "full": "No space"}[obstacle] in line or (
        obstacle == "a file" and "File exists" in line
    )
    assert from_cache(folder) is made and made.records["id"][:3].tolist() == BYTES.encode("fir")


def test_a_failure_half_way_leaves_nothing(tmp_path):
    def documents():
        # More than a batch, so that the file has been begun.
        yield "x" * (tokens.BATCH_CHARACTERS + 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(tmp_path, documents=documents())
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from tasks.language import tokens
from tasks.language.tokenizer import ByteTokenizer
load = tokens.load_tokens(sys.argv[1], source=("x",), documents=lambda: ["word " * 999], tokenizer=ByteTokenizer(), seq_len=4)
def chunks(self):
    yield next(real(self))
    print("writing", flush=True)
    signal.pause()
real, tokens.Records.chunks = tokens.Records.chunks, chunks
load.keep()
"""


def test_what_a_killed_writer_leaves_goes_with_the_next_request_and_a_living_one_keeps_its_own(tmp_path):
    writer = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]
    )
    assert writer.stdout.readline() == "writing\n"
    (temporary,) = tmp_path.iterdir()
    keep(tmp_path, source=("y",))
    assert temporary.exists()
    writer.kill()
    writer.wait()
    # Nothing is to be written, but tidied.
    from_cache(tmp_path, source=("y",)).keep()
    assert not temporary.exists() and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("make", [load, keep])
def test_a_file_is_closed_with_the_last_of_its_readers(tmp_path, make):
    """Nobody closes it by hand: tasks that hold it are kept in caches."""
    made = make(tmp_path)
    file = made.records.file
    assert not file.closed and len(all_of(made))
    del made
    gc.collect()
    assert file.closed


def test_too_short_a_text_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="seq_len=4 is more than the 3 tokens"):
        load(tmp_path / "cache", documents=["abc"])
    assert not (tmp_path / "cache").exists()


def test_a_cached_text_may_be_too_short_as_well(tmp_path):
    keep(tmp_path)
    with pytest.raises(ValueError, match="seq_len=9999 is more than"):
        load(tmp_path, seq_len=9999)


@pytest.fixture
def lossy(tmp_path):
    """A tokenizer without an id for Cyrillic."""
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate("acdeht ")}, []))
    made.pre_tokenizer = pre_tokenizers.Split(".", "isolated")
    made.save(str(tmp_path / "lossy.json"))
    return load_tokenizer(str(tmp_path / "lossy.json"))


def test_what_a_tokenizer_loses_is_said_each_time_and_does_not_count(tmp_path, caplog, lossy):
    documents = ["the cat " * 10, "hat кот"]
    for load_lossy in (keep, from_cache):
        tokens.warn_once.cache_clear()
        caplog.clear()
        made = load_lossy(tmp_path / "cache", tokenizer=lossy, **({"documents": documents} if load_lossy is keep else {}))
        (line,) = caplog.messages
        assert "lossy.json': its ids do not give back " in line and f"{made.lost:,} of {made.total:,} bytes" in line
        # Without a decoder the ids of letters decode to letters with spaces between, so that no space is known.
        assert made.total == 90 and made.records["num_bytes"].sum() == made.total - made.lost <= 84
        assert made.lost >= 6 and caplog.records[0].levelno == logging.WARNING


def test_a_tokenizer_that_loses_most_is_refused(tmp_path, lossy):
    with pytest.raises(ValueError, match="lossy.json': its ids do not give back 6 of 8 bytes of a text; half of them"):
        load(tmp_path, documents=["atкот"], seq_len=1, tokenizer=lossy)


def test_two_processes_at_once_agree(tmp_path):
    documents = [f"document {i}\n" * 500 for i in range(50)]
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("fork")) as pool:
        digests = list(pool.map(digest_of, [str(tmp_path)] * 4, [documents] * 4))
    assert len(set(digests)) == 1 and len(list(tmp_path.iterdir())) == 2
    assert from_cache(tmp_path).digest == digests[0]


def digest_of(folder, documents):
    return keep(folder, documents=documents).digest


def test_tokenising_tells_how_far_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.language.tokens.PIECE_CHARACTERS", 100)
    told: list[tuple[str, int, int]] = []
    with heard(lambda *what: told.append(what)):
        load_tokens(
            str(tmp_path), source=("x",), documents=lambda: ["w" * 250, "é" * 50], tokenizer=BYTES, seq_len=4, name="books"
        )
        assert told == [("tokenising books", done, 350) for done in (100, 200, 250, 350)]
        keep(tmp_path)
        told.clear()
        from_cache(tmp_path)
    assert told == []
