from __future__ import annotations

import glob
import gzip
import inspect
import lzma
import sysconfig
import textwrap
from pathlib import Path

import pytest
import yaml
import zstandard

from tasks import corpus
from tasks.corpus import (
    STDLIB_VALIDATION_FRACTION,
    heldout_stdlib_documents,
    open_corpus,
    split_documents,
    stdlib_documents,
    text_documents,
)

TEXT = "first\nline <|endoftext|> inside\nand <|endoftext|>\n<|endoftext|>\nsecond é\n<|endoftext|>"
DOCUMENTS = ["first\nline <|endoftext|> inside\nand <|endoftext|>\n", "second é\n"]
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
    ("name", "path", "message"),
    [
        ("text", "nowhere/*.txt", r"data.path='nowhere/\*.txt' matches no file"),
        ("text", "tests,nowhere", "data.path='tests' is a folder"),
        ("text", None, "data.path is not set"),
        ("stdlib", "a.txt", "data.path='a.txt' has no meaning"),
    ],
)
def test_a_path_that_cannot_be_is_named(name, path, message):
    with pytest.raises(ValueError, match=message):
        open_corpus(name, path)


def test_digest_follows_the_content_and_not_the_place(tmp_path):
    (tmp_path / "a.txt").write_text("same")
    (tmp_path / "b.txt").write_text("same")
    (tmp_path / "c.txt").write_text("other")
    a, b, c = (open_corpus("text", str(tmp_path / f"{name}.txt")).digest for name in "abc")
    assert a == b != c


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


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5])
def test_fraction_out_of_range_is_named(fraction):
    with pytest.raises(ValueError, match=f"validation_fraction={fraction}"):
        split_documents(["text"], fraction)


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
    corpus._stdlib_documents.cache_clear()
    yield tmp_path
    corpus._stdlib_documents.cache_clear()


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
    digest = open_corpus("stdlib", None).digest
    (library / "c.py").write_text(sources["c.py"].replace("one", "uno"))
    assert open_corpus("stdlib", None).digest != digest


def test_a_python_without_sources_is_told(library):
    with pytest.raises(ValueError, match="use data=text"):
        stdlib_documents()


def test_the_fraction_held_out_of_stdlib_is_the_one_in_the_configuration():
    configuration = yaml.safe_load(Path("conf/data/stdlib.yaml").read_text())
    assert configuration["validation_fraction"] == STDLIB_VALIDATION_FRACTION
