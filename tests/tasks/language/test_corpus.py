from __future__ import annotations

import bz2
import glob
import gzip
import inspect
import lzma
import os
import signal
import socket
import sysconfig
import textwrap
import tracemalloc
from pathlib import Path

import pytest
import yaml
import zstandard

from conf.paths import UserPaths
from tasks.language import corpus, text_files
from tasks.language.corpus import (
    STDLIB_VALIDATION_FRACTION,
    heldout_stdlib_documents,
    split_documents,
    stdlib_documents,
)

TEXT = "first\nline <|endoftext|> inside\nand <|endoftext|>\n<|endoftext|>\nsecond é\n<|endoftext|>"
DOCUMENTS = ["first\nline <|endoftext|> inside\nand <|endoftext|>\n", "second é\n"]


def text_documents(path: object) -> list[str]:
    """The documents of paths as a configuration has them: a list, or a text with commas."""
    return text_files.text_documents(UserPaths.of(path))


def open_corpus(path: str | None) -> corpus.Corpus:
    return corpus.open_corpus(None if path is None else UserPaths.of(path))


COMPRESS = {".txt": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.ZstdCompressor().compress}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_files_give_their_documents_however_compressed(tmp_path, suffix):
    file = tmp_path / f"text{suffix}"
    file.write_bytes(COMPRESS[suffix](TEXT.encode()))
    assert text_documents(str(file)) == DOCUMENTS


def test_zst_of_several_frames_is_read_to_its_end(tmp_path):
    frames = [zstandard.ZstdCompressor().compress(part.encode()) for part in ("one ", "two")]
    (tmp_path / "a.zst").write_bytes(b"".join(frames))
    assert text_documents(str(tmp_path / "a.zst")) == ["one two"]


def test_paths_globs_and_lists_name_each_file_once_in_order(tmp_path, monkeypatch):
    # Folders are listed in any order.
    listed = glob.glob
    monkeypatch.setattr(glob, "glob", lambda *args, **kwargs: sorted(listed(*args, **kwargs), reverse=True))
    for name in ("b", "a", "c,d", "e[1]"):
        (tmp_path / f"{name}.txt").write_text(name)
    folder = str(tmp_path)
    assert text_documents(f"{folder}/b.txt, {folder}/[ab].txt") == ["b", "a"]
    assert text_documents([f"{folder}/b.txt", f"{folder}/a.txt"]) == ["b", "a"]
    assert text_documents(f"{folder}/[ab].txt") == ["a", "b"]
    assert text_documents(f"{folder}/c,d.txt") == ["c,d"]
    assert text_documents(f"{folder}/e[1].txt") == ["e[1]"]
    assert text_documents(f"{folder}/**/a.txt") == ["a"]


def zst(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


@pytest.mark.parametrize(
    ("suffix", "compress", "padding"),
    [(".gz", gzip.compress, b"\0" * 512), (".xz", lzma.compress, b"\0" * 8), (".zst", zst, b"")],
)
def test_streams_one_after_another_are_all_read_and_each_has_to_be_whole(tmp_path, suffix, compress, padding):
    # Larger than what is read and decompressed at once, and not the same everywhere.
    first, second = ("".join(f"{i * step} word\n" for i in range(40_000)) for step in (7, 13))
    streams = compress(first.encode()), compress(second.encode())
    whole, path = b"".join(streams) + padding, tmp_path / f"text{suffix}"
    path.write_bytes(whole)
    assert text_documents(str(path)) == [first + second]
    cuts = [len(whole) - len(padding) - 1, len(streams[0]) + 3, len(streams[0]) // 2, 3]
    flipped = bytearray(whole)
    flipped[len(streams[0]) + 2] ^= 0xFF
    garbage = [whole + b"garbage", whole + padding + b"x", streams[0] + b"plain text\n" * 99, bytes(flipped)]
    for damaged in [*(whole[:cut] for cut in cuts), *garbage]:
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"text{suffix}' is not a whole {suffix} file"):
            text_documents(str(path))


@pytest.mark.parametrize("suffix", [".txt", ".gz", ".xz", ".zst"])
def test_what_is_larger_than_permitted_is_named_without_being_held(tmp_path, monkeypatch, suffix):
    path, limit = tmp_path / f"bomb{suffix}", 2**20
    monkeypatch.setattr(text_files, "most_bytes", lambda: limit)
    path.write_bytes((COMPRESS | {".zst": zst})[suffix](b"a" * 2**27))
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"bomb{suffix}' .* more than the 1,048,576 (bytes )?of text"):
        text_documents(str(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # A block of the decompressor beside what is permitted.
    assert peak < 2**26
    small = tmp_path / "small.txt"
    small.write_text("b" * (limit // 2))
    assert text_documents([str(small)]) == ["b" * (limit // 2)]
    (tmp_path / "again.txt").write_text("c" * (limit // 2 + 1))
    with pytest.raises(ValueError, match="again.txt' has 524,289 bytes, more than the 524,288"):
        text_documents([str(small), str(tmp_path / "again.txt")])


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "link to a device", "proc", "sparse"])
def test_only_regular_files_are_opened(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path, message = "odd.txt", kind.split()[-1]
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(path)
    elif kind == "device":
        path = "/dev/zero"
    elif kind == "link to a device":
        os.symlink("/dev/zero", path)
    elif kind == "proc":
        path, message = "/proc/self/environ", "is empty"
    else:
        with open(path, "wb") as file:
            file.truncate(2**40)
        message = "has 1,099,511,627,776 bytes, more than"
    if not os.path.lexists(path):
        pytest.skip("this system has no such file")
    # What waits for a pipe is ended, and fails.
    signal.alarm(10)
    try:
        with pytest.raises(ValueError, match=f"data.path: '{path}' .*{message}"):
            open_corpus(path)
        with pytest.raises(ValueError, match=f"data.path: '{path}' .*{message}"):
            text_documents(path)
    finally:
        signal.alarm(0)


def test_a_link_to_a_file_is_a_file_and_names_are_taken_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("a=b.txt", " led.txt", "c,(d", "2024", "ä[1]~.txt"):
        (tmp_path / name).write_text(name)
        assert text_documents(name) == text_documents(f"~/{name}") == text_documents([name]) == [name]
    (tmp_path / "link.txt").symlink_to("a=b.txt")
    assert text_documents("link.txt") == ["a=b.txt"] and text_documents(2024) == ["2024"]


@pytest.mark.parametrize(
    "text",
    [
        "one\n<|endoftext|> \ntwo\n",
        "one\n \t<|endoftext|>\ntwo\n",
        "one\n<|endoftext|>\n\ufeff<|endoftext|>\ntwo\n",
        "one\n<|EndOfText|>\ntwo\n",
        "one\n<|end_of_text|>\ntwo\n",
        "one\n<|endoftext|>\ntwo\r<|endoftext|>\rthree",
        "one\u2028<|endoftext|>\u2028two\n",
    ],
)
def test_a_line_that_is_nearly_a_separator_is_named(tmp_path, text):
    (tmp_path / "a.txt").write_bytes(text.encode())
    with pytest.raises(ValueError, match="a.txt' has [12] lines such as '.*<[|].*[|]> ?', of which [01] separate"):
        text_documents(str(tmp_path / "a.txt"))


def test_separators_that_all_stand_within_lines_are_named_unless_one_does_not(tmp_path):
    (tmp_path / "a.txt").write_text("one<|endoftext|>two<|endoftext|>")
    with pytest.raises(ValueError, match="a.txt' has <.endoftext.> within lines alone: a separator is a line"):
        text_documents(str(tmp_path / "a.txt"))
    (tmp_path / "a.txt").write_text("one<|endoftext|>two\n<|endoftext|>\n")
    assert text_documents(str(tmp_path / "a.txt")) == ["one<|endoftext|>two\n"]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_lines_may_end_in_lf_or_crlf(tmp_path, ending):
    (tmp_path / "a.txt").write_bytes(f"one{ending}<|endoftext|>{ending}two{ending}<|endoftext|>{ending}".encode())
    assert text_documents(str(tmp_path / "a.txt")) == [f"one{ending}", f"two{ending}"]


RECORDS = '{"text": "one"}\n{"text": "two"}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", RECORDS.encode(), "looks like JSON lines, not text: write the text of its documents"),
        ("a.jsonl.gz", gzip.compress(RECORDS.encode(), mtime=0), "looks like JSON lines"),
        ("a.txt", RECORDS.encode(), "looks like JSON"),
        ("a.txt", b'\xef\xbb\xbf[\n {\n  "text": "one"}]', "looks like JSON"),
        ("A.JSON", b"[1, 2]\n", "looks like JSON"),
        ("a.csv", b"text,label\none,1\n", "looks like a table"),
        ("a.parquet", b"PAR1\0\0\0", "is binary, not text"),
        ("a.bin", b"\x01\0\x02\0", "is binary, not text"),
        ("a.txt", gzip.compress(RECORDS.encode(), mtime=0), "is binary, not text"),
        ("a.txt", zst(RECORDS.encode() * 9), "is (not UTF-8|binary)"),
        ("a.txt.bz2", bz2.compress(RECORDS.encode()), "is (not UTF-8|binary)"),
        ("a.txt", RECORDS.encode("utf-16"), "is UTF-16 or UTF-32 text: write it as UTF-8, e.g. iconv"),
        ("a.gz", gzip.compress(RECORDS.encode("utf-32"), mtime=0), "is UTF-16 or UTF-32 text"),
        ("a.txt", "text".encode("utf-16-be"), "is binary"),
        ("a.txt", b"one\r<|endoftext|>\rtwo\r", "line ends of CR alone"),
        ("a.txt", b"one\rtwo", "line ends of CR alone"),
        ("a.txt", b"<|endoftext|>\n<|endoftext|>\n", "is empty"),
    ],
)
def test_what_is_no_plain_text_is_named_with_what_to_do(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"data.path: '.*{name}' .*{message}"):
        text_documents(str(tmp_path / name))


def test_json_is_text_where_its_documents_are_marked(tmp_path):
    (tmp_path / "a.jsonl").write_text(RECORDS + "<|endoftext|>\n")
    assert text_documents(str(tmp_path / "a.jsonl")) == [RECORDS]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "is empty"),
        ("blank.txt", b"\n<|endoftext|>\n \n", "is empty"),
        ("zero.txt", b"text\0text", "is binary"),
        ("latin.txt", "é".encode("latin-1"), "is not UTF-8"),
        ("cut.gz", gzip.compress(b"text" * 99, mtime=0)[:-9], "not a whole .gz"),
        ("cut.xz", lzma.compress(b"text" * 99)[:-9], "not a whole .xz"),
        ("wrong.zst", b"text", "not a whole .zst"),
    ],
)
def test_a_file_that_is_not_text_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
        text_documents(str(tmp_path / name))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere/*.txt", r"data.path='nowhere/\*.txt' matches no file"),
        ("tests,nowhere", "data.path='tests' is a folder"),
    ],
)
def test_a_path_that_cannot_be_is_named(path, message):
    with pytest.raises(ValueError, match=message):
        open_corpus(path)


def test_digest_follows_the_content_and_not_the_place(tmp_path):
    (tmp_path / "a.txt").write_text("same")
    (tmp_path / "b.txt").write_text("same")
    (tmp_path / "c.txt").write_text("other")
    a, b, c = (open_corpus(str(tmp_path / f"{name}.txt")).digest for name in "abc")
    assert a == b != c


def test_a_text_that_changes_before_it_is_read_is_named(tmp_path):
    """What is tokenised would be kept under the digest of another text."""
    path = tmp_path / "a.txt"
    path.write_text("one")
    opened = open_corpus(str(path))
    assert opened.read() == ["one"]
    path.write_text("two")
    with pytest.raises(ValueError, match=f"data.path='{path}' has changed while it was read"):
        opened.read()


def test_split_is_by_content_and_exact():
    documents = [f"document {i} " * (1 + i % 7) for i in range(200)]
    split, reverse = split_documents(documents, 0.25), split_documents(documents[::-1], 0.25)
    assert {k: sorted(v) for k, v in split.items()} == {k: sorted(v) for k, v in reverse.items()}
    sizes = {k: sum(map(len, v)) for k, v in split.items()}
    assert sizes["train"] + sizes["validation"] == sum(map(len, documents))
    assert sizes["validation"] == pytest.approx(0.25 * sum(sizes.values()), abs=15)
    assert not set(split["train"]) & set(split["validation"])
    cut = set(documents) - set(split["train"]) - set(split["validation"])
    assert len(cut) <= 1
    assert [document for document in split["train"] if document in documents] == [
        document for document in documents if document in split["train"]
    ]


def test_a_single_document_gives_both_parts_cut_at_white_space():
    document = "word " * 100
    split = split_documents([document], 0.1)
    assert split["train"] + split["validation"] == [document[:450], document[450:]]
    assert split_documents(["ab\ncd ef gh"], 0.3) == {"train": ["ab\ncd "], "validation": ["ef gh"]}
    assert split_documents(["x" * 10], 0.1) == {"train": ["x" * 9], "validation": ["x"]}


def test_a_larger_fraction_holds_out_all_that_a_smaller_one_does():
    documents = [f"{i} " * 50 for i in range(30)]
    small, large = ("".join(split_documents(documents, fraction)["validation"]) for fraction in (0.1, 0.4))
    assert all(document in large for document in documents if document in small)
    assert len(small) < len(large)


def test_stdlib_is_prose_and_its_held_out_part_is_unseen():
    documents = stdlib_documents()
    assert sum(map(len, documents)) > 1_000_000
    text = "".join(documents)
    assert inspect.getdoc(textwrap.wrap) in text and inspect.getsource(textwrap.wrap).splitlines()[0] not in text
    split = split_documents(documents, STDLIB_VALIDATION_FRACTION)
    held_out = heldout_stdlib_documents()
    assert held_out == split["validation"]
    train = "".join(split["train"])
    assert not any(document in train for document in held_out)
    assert sum(map(len, held_out)) == pytest.approx(STDLIB_VALIDATION_FRACTION * sum(map(len, documents)), rel=0.01)


@pytest.fixture
def library(tmp_path, monkeypatch):
    """An empty folder in the place of the standard library."""
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    corpus.stdlib_documents.cache_clear()
    yield tmp_path
    corpus.stdlib_documents.cache_clear()


def test_stdlib_drops_what_it_had_and_what_is_no_documentation(library):
    sources = {
        "a.py": f'"""{"one " * 60}"""\nx = 1\nif x:\n    def f():\n        """{"two " * 60}"""\n',
        "b.py": f'"""{"one " * 60}"""\nclass C:\n    """{"three " * 60}"""\n',
        "c.py": f'"""{"one " * 60}"""\n',
        "d.py": "not python",
        "e.py": '"""short"""',
        "pydoc_data/topics.py": f"topics = {{'x': {'four ' * 60!r}, 'y': {'five ' * 60!r}}}",
        "test/f.py": f'"""{"six " * 60}"""',
    }
    for name, source in sources.items():
        (library / name).parent.mkdir(exist_ok=True)
        (library / name).write_text(source)
    documents = [" ".join(dict.fromkeys(document.split())) for document in stdlib_documents()]
    assert documents == ["one two", "three", "four", "five"]
    digest = open_corpus(None).digest
    (library / "c.py").write_text(sources["c.py"].replace("one", "uno"))
    assert open_corpus(None).digest != digest


def test_a_python_without_sources_is_told(library):
    with pytest.raises(ValueError, match="use data=text"):
        stdlib_documents()


def test_the_fraction_held_out_of_stdlib_is_the_one_in_the_configuration():
    configuration = yaml.safe_load(Path("conf/data/stdlib.yaml").read_text())
    assert configuration["validation_fraction"] == STDLIB_VALIDATION_FRACTION
