from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from tasks import tokens
from tasks.tokenizer import ByteTokenizer, load_tokenizer
from tasks.tokens import encode_documents, load_tokens

DOCUMENTS = ["first é\n", "second", "third\n" * 50]
BYTES = ByteTokenizer()


def load(folder, documents=DOCUMENTS, source=("x",), seq_len=4):
    return load_tokens(str(folder), source=source, documents=lambda: documents, tokenizer=BYTES, seq_len=seq_len)


def unexpected():
    raise AssertionError("the text was tokenised again")


def cache_files(folder, suffix):
    return sorted(path for path in folder.iterdir() if path.suffix == suffix)


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


def test_text_is_tokenised_once(tmp_path):
    first = load(tmp_path)
    again = load_tokens(str(tmp_path), source=("x",), documents=unexpected, tokenizer=BYTES, seq_len=4)
    assert again.digest == first.digest and (again.records == first.records).all()
    assert isinstance(again.records, np.memmap) and not again.records.flags.writeable


def test_another_source_or_tokenizer_is_another_file(tmp_path, make_tokenizer_file):
    load(tmp_path)
    load(tmp_path, source=("y",))
    tokenizer = load_tokenizer(make_tokenizer_file([]))
    load_tokens(str(tmp_path), source=("x",), documents=lambda: DOCUMENTS, tokenizer=tokenizer, seq_len=4)
    assert len(cache_files(tmp_path, ".tokens")) == 3


@pytest.mark.parametrize("damage", ["truncated", "flipped", "digest lost", "digest empty"])
def test_a_damaged_cache_is_made_again(tmp_path, damage):
    whole = load(tmp_path)
    (path,), (digest,) = cache_files(tmp_path, ".tokens"), cache_files(tmp_path, ".sha256")
    content = path.read_bytes()
    # A new file, so that the mapping of the old one stays whole.
    path.unlink()
    path.write_bytes({"truncated": content[:-5], "flipped": content[:8] + b"\xff" + content[9:]}.get(damage, content))
    if damage == "digest lost":
        digest.unlink()
    if damage == "digest empty":
        digest.write_bytes(b"")
    again = load(tmp_path)
    assert again.digest == whole.digest and path.read_bytes() == content
    load_tokens(str(tmp_path), source=("x",), documents=unexpected, tokenizer=BYTES, seq_len=4)


def test_a_failure_half_way_leaves_nothing(tmp_path):
    def documents():
        # More than a batch, so that the file has been begun.
        yield "x" * (tokens.BATCH_CHARACTERS + 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_tokens(str(tmp_path), source=("x",), documents=documents, tokenizer=BYTES, seq_len=4)
    assert list(tmp_path.iterdir()) == []


def test_too_short_a_text_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="seq_len=4 is more than the 3 tokens"):
        load(tmp_path / "cache", documents=["abc"])
    assert not (tmp_path / "cache").exists()


def test_a_cached_text_may_be_too_short_as_well(tmp_path):
    load(tmp_path)
    with pytest.raises(ValueError, match="seq_len=9999 is more than"):
        load(tmp_path, seq_len=9999)


def test_two_processes_at_once_agree(tmp_path):
    documents = [f"document {i}\n" * 500 for i in range(50)]
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("fork")) as pool:
        digests = list(pool.map(digest_of, [str(tmp_path)] * 4, [documents] * 4))
    assert len(set(digests)) == 1 and len(list(tmp_path.iterdir())) == 2
    assert load_tokens(str(tmp_path), source=("x",), documents=unexpected, tokenizer=BYTES, seq_len=4).digest == digests[0]


def digest_of(folder, documents):
    return load(folder, documents=documents).digest
