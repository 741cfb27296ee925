from __future__ import annotations

import hashlib
import json
import os

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tasks.language.tokenizer import BOS_NAMES, ByteTokenizer, load_tokenizer

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


def test_aligned_bytes_add_up_to_all_bytes_but_those_that_are_lost(tokenizer):
    texts = [*TEXTS, "  white space around \n"]
    for text, (ids, num_bytes) in zip(texts, tokenizer.align(texts), strict=True):
        assert ids.tolist() == tokenizer.encode(text)
        assert num_bytes.shape == ids.shape and (num_bytes >= 0).all()
        # Where a normaliser strips a text, what it strips is nowhere in the ids.
        whole = tokenizer.decode(ids) == text
        assert num_bytes.sum() == len((text if whole else text.strip()).encode())
        assert whole or text == texts[-1]


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


LETTERS = {letter: i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
TEXT = "The café fox <s> the <|endoftext|> cat, кот 42\n\n the [BOS] the \u2460 fox. "
SPLIT = pre_tokenizers.WhitespaceSplit
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_level(normalizer=None, *, added=(), post_processor=None, vocab=(), prefix=False, **settings) -> Tokenizer:
    """A byte-level BPE that knows "the"."""
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the")]
    names = [*BYTES, "th", "the", "Ġthe", *vocab]
    made = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges, **settings))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    made.decoder = decoders.ByteLevel()
    if normalizer:
        made.normalizer = normalizer
    if post_processor:
        made.post_processor = post_processor
    made.add_tokens(list(added))
    return made


def bpe(*, unk=None, **settings) -> Tokenizer:
    made = Tokenizer(models.BPE({**LETTERS, "<unk>": 26}, [], unk_token=unk, **settings))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def word_level(words=("<unk>", "the", "cat", "fox"), unk="<unk>", *, split=pre_tokenizers.Whitespace) -> Tokenizer:
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=unk))
    made.pre_tokenizer = split()
    return made


def unigram(*, names=(), byte_fallback=False) -> Tokenizer:
    pieces = ["<unk>", "▁", "▁the", *LETTERS, *names, *(f"<0x{i:02X}>" for i in range(256 * byte_fallback))]
    made = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0, byte_fallback=byte_fallback))
    if byte_fallback:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        made.decoder = decoders.Sequence(parts)
    else:
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return made


def word_piece(split=pre_tokenizers.BertPreTokenizer) -> Tokenizer:
    made = Tokenizer(models.WordPiece({"[UNK]": 0, "the": 1, "fo": 2, "##x": 3, "[BOS]": 4}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(lowercase=split != SPLIT), split()
    made.decoder = decoders.WordPiece()
    return made


@pytest.fixture
def loaded(tmp_path):
    """Writes a tokenizer and loads it."""

    def load(made: Tokenizer):
        made.save(str(tmp_path / "tokenizer.json"))
        return load_tokenizer(str(tmp_path / "tokenizer.json"))

    return load


def counted(tokenizer, text: str) -> int:
    ((ids, num_bytes),) = tokenizer.align([text])
    assert ids.tolist() == tokenizer.encode(text) and len(ids) == len(num_bytes)
    return int(num_bytes.sum())


WHOLE = {
    "bytes": byte_level(),
    "prefix space": byte_level(prefix=True),
    "trimmed offsets": byte_level(post_processor=processors.ByteLevel(trim_offsets=True)),
    "byte fallback": unigram(byte_fallback=True),
    "nothing to normalise": byte_level(normalizers.Strip(left=True, right=False)),
    "added": byte_level(added=["fox", AddedToken("the [BOS]", normalized=False)]),
}


@pytest.mark.parametrize("made", WHOLE.values(), ids=WHOLE)
def test_every_byte_counts_of_a_text_that_comes_back(loaded, made):
    assert counted(loaded(made), TEXT) == len(TEXT.encode())


@pytest.mark.parametrize(
    ("made", "text", "expected"),
    [
        # A character without an id, and white space that no id stands for.
        (bpe(), "the кот cat", 6),
        # Behind a character without an id the package misplaces the rest of the word.
        (bpe(), "the ca1t", 5),
        (bpe(unk="<unk>"), "the кот ca1t", 6),
        (bpe(unk="<unk>", fuse_unk=True), "the кот ca1t", 6),
        (word_level(), "the cat saw a  fox", 9),
        # "unk" is a part of what the unknown token says.
        (word_level(), "unk <unk >", 0),
        (unigram(), "the cat №1 the", len("the cat ") + len(" the")),
        (word_piece(), "The fox, the foxes", len("foxthe")),
        # What is rewritten is not predicted.
        (byte_level(normalizers.Lowercase()), "The the", 4),
        (byte_level(normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])), "café au", 6),
        (byte_level(normalizers.NFKC()), "\u2460 the", 4),
        (byte_level(normalizers.NFC()), "cafe\u0301 the", 7),
        (byte_level(normalizers.NFC()), "café the", 9),
        (byte_level(normalizers.Replace(Regex("[a-z]"), "a")), "banana the", 4),
        (byte_level(normalizers.Replace(Regex("[0-9]"), "")), "a1b22 the", 6),
        (byte_level(normalizers.Strip()), "  the\n", 3),
        (byte_level(added=[AddedToken("fox", lstrip=True, rstrip=True)]), "the fox the", 9),
        (bpe(), "кот", 0),
        (bpe(), "", 0),
    ],
)
def test_no_byte_counts_that_the_ids_do_not_give_back(loaded, made, text, expected):
    assert counted(loaded(made), text) == expected


def test_what_is_lost_costs_only_itself(loaded):
    """A character that is lost changes nothing of what stands around, wherever a text is cut."""
    for made in (unigram(), byte_level(normalizers.Replace("№", ""), post_processor=processors.ByteLevel(trim_offsets=True))):
        tokenizer = loaded(made)
        assert counted(tokenizer, "the cat and the fox " * 9 + "№") == len("the cat and the fox " * 9)


def special(name: str, **settings) -> AddedToken:
    return AddedToken(name, special=True, **settings)


def with_special(made: Tokenizer, *names: str) -> Tokenizer:
    made.add_special_tokens(list(names))
    return made


def spelled(name: str) -> Tokenizer:
    """A BPE whose merges make a name."""
    heads = [name[: i + 1] for i in range(1, len(name))]
    merges = [(name[:i], name[i]) for i in range(1, len(name))]
    return Tokenizer(models.BPE({part: i for i, part in enumerate(dict.fromkeys([*BYTES, *heads]))}, merges))


OWN_BOS = {
    "a word that is never split off": (with_special(word_level(["<unk>", "<s>", "cat", "fox"]), "<s>"), "<s>"),
    "a word piece that is never split off": (word_piece(), "[BOS]"),
    "the unknown token of whole bytes": (byte_level(vocab=["<s>"], unk_token="<s>"), "<s>"),
    "special, not in the model": (with_special(byte_level(), "<s>"), "<s>"),
    "special, in the model": (with_special(byte_level(vocab=["<|endoftext|>"]), "<|endoftext|>"), "<|endoftext|>"),
    "special, taking the white space around": (byte_level(added=[special("<s>", lstrip=True, rstrip=True)]), "<s>"),
    "special, of a normaliser": (with_special(byte_level(normalizers.Replace("cat", "<s>")), "<s>"), "<s>"),
    "in the model, never merged": (byte_level(vocab=["<bos>"]), "<bos>"),
    "the second, as the first is text": (with_special(byte_level(added=["<|endoftext|>"]), "<s>"), "<s>"),
}
ANOTHER_BOS = {
    "added, not special": byte_level(added=[AddedToken("<|endoftext|>", special=False)]),
    "added, of a normaliser": byte_level(normalizers.Replace("cat", "<s>"), added=[AddedToken("<s>", normalized=True)]),
    "a word": word_level(["<unk>", "<s>", "cat"], split=SPLIT),
    "a special word": with_special(word_level(["<unk>", "<s>", "cat"], split=SPLIT), "<s>"),
    "the unknown word": word_level(["<s>", "cat"], unk="<s>"),
    "the unknown token": Tokenizer(models.BPE({"a": 0, "b": 1, "<s>": 2}, [], unk_token="<s>")),
    "a piece": unigram(names=["<s>"]),
    "a special piece": with_special(unigram(names=["<s>"]), "<s>"),
    "a word piece": with_special(word_piece(split=SPLIT), "[BOS]"),
    "merged": spelled("<s>"),
    "merged and special": with_special(spelled("<|endoftext|>"), "<|endoftext|>"),
    "found without merges": with_special(Tokenizer(models.BPE({"a": 0, "<s>": 1}, [], ignore_merges=True)), "<s>"),
    "not named": byte_level(),
}


@pytest.mark.parametrize(("made", "name"), OWN_BOS.values(), ids=OWN_BOS)
def test_bos_is_the_file_s_own_where_no_text_can_give_it(loaded, made, name):
    tokenizer = loaded(made)
    assert tokenizer.bos == made.token_to_id(name) and tokenizer.vocab_size == max(made.get_vocab().values()) + 1
    for text in (TEXT, name, f"a{name}b", " ".join(BOS_NAMES), "".join(BOS_NAMES)):
        assert tokenizer.bos not in tokenizer.encode(text)
        assert tokenizer.bos not in tokenizer.align([text])[0][0]
    assert tokenizer.decode([tokenizer.bos, *tokenizer.encode("fox")]) == "fox"


@pytest.mark.parametrize("made", ANOTHER_BOS.values(), ids=ANOTHER_BOS)
def test_bos_is_one_more_id_where_a_text_can_give_its_name(loaded, made):
    tokenizer = loaded(made)
    assert tokenizer.bos == max(made.get_vocab().values()) + 1 == tokenizer.vocab_size - 1
    for text in (TEXT, "cat", *BOS_NAMES, " ".join(BOS_NAMES), "".join(BOS_NAMES)):
        assert tokenizer.bos not in tokenizer.encode(text)


def test_a_text_that_gives_bos_in_another_way_is_refused(loaded):
    made = with_special(word_level(["<unk>", "<s>", "cat"], split=SPLIT), "<s>")
    made.normalizer = normalizers.Sequence([normalizers.Replace("<s>", "cat"), normalizers.Replace("§", "<s>")])
    tokenizer = loaded(made)
    assert tokenizer.bos == 1 and tokenizer.encode("<s> cat") == [2, 2]
    for encode in (tokenizer.encode, lambda text: tokenizer.align(["cat", text])):
        with pytest.raises(ValueError, match="tokenizer.json' gives BOS, id 1, within a text"):
            encode("cat § cat")


def test_only_another_bos_than_the_file_s_first_changes_the_fingerprint(loaded, tmp_path):
    for made, same in (
        (with_special(byte_level(), "<s>"), True),
        (byte_level(), True),
        (byte_level(added=["<s>"]), False),
        (with_special(byte_level(added=["<|endoftext|>"]), "<s>"), False),
    ):
        tokenizer = loaded(made)
        of_file = hashlib.sha256((tmp_path / "tokenizer.json").read_bytes()).hexdigest()
        assert (tokenizer.fingerprint == of_file) == same


def test_nothing_is_random(loaded):
    made = byte_level(dropout=0.5)
    assert len({tuple(made.encode("the the the the").ids) for _ in range(20)}) > 1
    tokenizer = loaded(made)
    assert {tuple(tokenizer.encode("the the")) for _ in range(20)} == {tuple(loaded(byte_level()).encode("the the"))}
    assert len(tokenizer.encode("the the")) == 2


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (word_level(["the"], unk="<unk>"), "Missing .UNK. token"),
        (Tokenizer(models.Unigram([("the", -1.0)])), "unk_id"),
        (Tokenizer(models.WordPiece({"the": 0}, unk_token="[UNK]")), "Missing .UNK. token"),
        (bpe(unk="<none>"), "<none>"),
    ],
)
def test_a_text_that_cannot_be_encoded_names_the_tokenizer(loaded, tmp_path, made, message):
    tokenizer = loaded(made)
    for encode in (tokenizer.encode, lambda text: tokenizer.align([text])):
        with pytest.raises(ValueError, match=f"data.tokenizer='{tmp_path}.*' cannot encode the text: .*{message}") as caught:
            encode("a кот")
        assert "\n" not in str(caught.value)


def test_a_pre_tokenizer_that_gives_up_names_the_tokenizer(loaded, capfd):
    made = byte_level()
    made.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$"), "removed")
    with pytest.raises(ValueError, match="data.tokenizer='.*' cannot encode the text"):
        loaded(made).encode("a" * 40 + "b")
    # What the package itself says of it.
    capfd.readouterr()


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        ({}, "has an empty vocabulary"),
        ({"a": 0, "b": 2**32 - 1}, "has the id 4294967295, permitted are ids below 2097151"),
        ({"a": 2**21 - 1}, "has the id 2097151, permitted are ids below 2097151"),
        ({"a": 2**32}, "is not a tokenizer.json"),
        ({"a": -1}, "is not a tokenizer.json"),
    ],
)
def test_a_vocabulary_that_cannot_be_is_named(tmp_path, vocabulary, message):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": vocabulary, "merges": []}}))
    with pytest.raises(ValueError, match=f"data.tokenizer='{path}' {message}"):
        load_tokenizer(str(path))


def test_the_largest_vocabulary_is_what_three_ids_in_a_number_permit(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 2**21 - 2}, "merges": []}}))
    size = load_tokenizer(str(path)).vocab_size
    assert size == 2**21 and size**3 - 1 == np.iinfo(np.int64).max


def test_home_is_told_and_only_a_regular_file_is_opened(loaded, tmp_path, monkeypatch):
    loaded(byte_level())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_tokenizer("~/tokenizer.json").vocab_size == 260
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(2**40)
    for name, message in (("pipe", "it is a pipe"), ("sparse", "it has more than"), ("", "it is a folder")):
        with pytest.raises(ValueError, match=f"data.tokenizer='~/{name}' cannot be read: {message}"):
            load_tokenizer(f"~/{name}")
    with pytest.raises(ValueError, match="data.tokenizer='/dev/zero' cannot be read: it is a device"):
        load_tokenizer("/dev/zero")


def test_many_texts_have_the_ids_and_the_bytes_of_each(tokenizer, loaded):
    for each in (tokenizer, loaded(word_level())):
        many = each.encode_many(TEXTS)
        assert [ids.tolist() for ids, _ in many] == [each.encode(text) for text in TEXTS]
        assert [credited for _, credited in many] == [int(num_bytes.sum()) for _, num_bytes in each.align(TEXTS)]
    lossy = loaded(word_level())
    ((_, credited),) = lossy.encode_many(["the cat кот"])
    assert credited == lossy.align(["the cat кот"])[0][1].sum() and 0 < credited < len("the cat кот".encode())


def test_bos_may_be_chosen_by_hand_and_makes_another_tokenizer(make_tokenizer_file):
    path = make_tokenizer_file(["<s>", "</s>"])
    own = load_tokenizer(path)
    other = load_tokenizer(path, 1)
    assert (own.bos, other.bos) == (0, 1) and own.vocab_size == other.vocab_size
    assert other.fingerprint != own.fingerprint == load_tokenizer(path, own.bos).fingerprint
    assert 1 not in other.encode("a text </s>")
    one_more = load_tokenizer(path, own.vocab_size)
    assert one_more.vocab_size == own.vocab_size + 1
    with pytest.raises(
        ValueError, match=f"data.bos=9999 is out of range, permitted with this tokenizer are ids from 0 to {own.vocab_size}"
    ):
        load_tokenizer(path, 9999)
    with pytest.raises(ValueError, match="data.bos=1 is out of range, permitted with bytes are null, 256"):
        load_tokenizer(None, 1)
    letter = own.encode("e")[0]
    with pytest.raises(ValueError, match=f"gives BOS, id {letter}, within a text"):
        load_tokenizer(path, letter).encode_many(["a letter"])
