from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models

from tasks.tokenizer import ByteTokenizer, load_tokenizer

TEXTS = ["", "plain text", "naïve café — 東京 😀\n\n  end", "a<|endoftext|>b<s>"]


@pytest.fixture(params=["bytes", "file", "normalised"])
def tokenizer(request, make_tokenizer_file):
    if request.param == "bytes":
        return load_tokenizer(None)
    return load_tokenizer(make_tokenizer_file(["<|endoftext|>"], normalise=request.param == "normalised"))


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_and_holds_no_special_ids(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode([tokenizer.bos, *ids]).lower() == text.lower()
    assert tokenizer.bos not in ids
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_aligned_bytes_add_up_to_all_bytes(tokenizer):
    texts = [*TEXTS, "  white space around \n"]
    for text, (ids, num_bytes) in zip(texts, tokenizer.align(texts), strict=True):
        assert ids.tolist() == tokenizer.encode(text)
        assert num_bytes.shape == ids.shape and (num_bytes >= 0).all()
        assert num_bytes.sum() == len(text.encode())


def test_a_token_covers_its_own_bytes(make_tokenizer_file):
    tokenizer = load_tokenizer(make_tokenizer_file([]))
    text = "the quick fox"
    ((ids, num_bytes),) = tokenizer.align([text])
    assert len(ids) < len(text)
    assert num_bytes.tolist() == [len(tokenizer.decode([i]).encode()) for i in ids]


@pytest.mark.parametrize(
    ("special_tokens", "bos"),
    [(["<s>", "<|endoftext|>"], "<|endoftext|>"), (["<pad>", "<s>"], "<s>"), (["[BOS]", "<bos>"], "<bos>"), (["<pad>"], None)],
)
def test_bos_is_the_first_known_name_or_one_more_id(make_tokenizer_file, special_tokens, bos):
    tokenizer = load_tokenizer(make_tokenizer_file(special_tokens))
    assert tokenizer.bos == (special_tokens.index(bos) if bos else tokenizer.vocab_size - 1)
    assert tokenizer.vocab_size == 300 + (bos is None)


def test_fingerprint_follows_the_definition_and_not_the_place(make_tokenizer_file):
    first, again, other = (make_tokenizer_file(names) for names in (["<s>"], ["<s>"], ["<bos>"]))
    assert first != again
    prints = [load_tokenizer(path).fingerprint for path in (first, again, other, None)]
    assert prints[0] == prints[1] and len(set(prints)) == 3


def test_bos_is_left_out_of_text_even_where_it_is_an_ordinary_word(tmp_path):
    path = str(tmp_path / "tokenizer.json")
    Tokenizer(models.WordLevel({"<s>": 0, "word": 1}, unk_token="word")).save(path)
    assert load_tokenizer(path).decode([0, 1]) == "word"


def test_bytes_that_are_no_text_decode_to_a_replacement():
    assert ByteTokenizer().decode([256, 0xC3, 65]) == "\ufffdA"


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot be read"), (b"{}", "is not a tokenizer.json"), (b"\xff", "is not")]
)
def test_a_file_that_is_no_tokenizer_is_named(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"data.tokenizer='{path}' {message}"):
        load_tokenizer(str(path))
