"""What the pages say: commands are planned, links and files exist, Python compiles, and extensions work when copied."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest

from reports.kit.page import Page, bound_part
from reports.kit.parts import Frames
from reports.kit.sheet import Sheet
from suite import reporting
from suite.cli import MULTIRUN, VERBS
from suite.cli import main as command
from suite.plan import plan

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted((ROOT / "docs").glob("*.md"))
EXTENDING = ROOT / "docs" / "extending.md"
# What a reader puts something of their own in the place of.
PLACEHOLDER = re.compile(r"\b(ID|NAME|FOLDER|VALUE|KEY|MODULE)\b|<\w+>")
# What commands make: it is not there before.
MADE = ("results/", "reports/build", ".venv/")
SUITE = "python -m suite "
STARTS = ("python ", "make ", "pytest ", "pip ", "lrs ", ".venv/bin/python ", ".ci/run")


class Block(NamedTuple):
    """A fenced block. file: the path that a comment at its top names, as `# models/retention.py`, or ""."""

    page: str
    language: str
    text: str

    @property
    def file(self) -> str:
        found = re.match(r"(?:# @package _global_\n)?# ([\w.-]+(?:/[\w.-]+)+)(?=\n|,)", self.text)
        return found[1] if found else ""


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), flags=re.M | re.S)
    return [Block(page.name, language, text) for language, text in found]


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command of a page's blocks and of its prose, comments left out."""
    lines = [line for block in blocks(page) if not block.language for line in block.text.splitlines()]
    for line in [*lines, *re.findall(r"`([^`\n]+)`", prose(page))]:
        if line.startswith(STARTS):
            yield shlex.split(line, comments=True)


BLOCKS = [block for page in PAGES for block in blocks(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
# What extending.md adds, and the row of a table that is there.
METRICS = "suite/metrics.py"
ADDED = {block.file: block.text for block in BLOCKS if block.page == EXTENDING.name and block.file}
COMMANDS = {shlex.join(words): page for page in PAGES for words in commands(page)}
REQUESTS = [text for text, page in COMMANDS.items() if text.startswith(SUITE) and page != EXTENDING]


def named(page: Path) -> set[str]:
    """Paths below a folder of the checkout that the page's prose has between backticks."""
    words = {word for text in re.findall(r"`([^`\n]+)`", prose(page)) for word in text.split()}
    tops = {path.name for path in ROOT.iterdir()}
    paths = {word.rstrip(".,:") for word in words if re.fullmatch(r"[\w.*-]+/[\w.*/-]*", word)}
    return {path for path in paths if path.split("/")[0] in tops and not PLACEHOLDER.search(path)}


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(scope="module")
def granted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the pages take for granted."""
    from tokenizers import Tokenizer, models

    folder = tmp_path_factory.mktemp("granted")
    (folder / "books").mkdir()
    for name in ("books/one.txt", "news.txt"):
        (folder / name).write_text("words of a text that is long enough for one window and then some\n" * 2000)
    subprocess.run(["xz", folder / "books" / "one.txt"], check=True)
    Tokenizer(models.BPE({chr(i): i for i in range(128)}, [])).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def elsewhere(granted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a test's own with these files, which are only read, and an empty store."""
    shutil.copytree(granted, tmp_path, copy_function=os.link, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def nothing_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report is looked for and its parts are checked; tests/reports/test_paper_tables.py draws one of an empty store."""

    def built(page: Page, frames: Frames, out_dir: Path, sheet: Sheet) -> Path:
        assert [bound_part(part) for part in page.parts]
        return out_dir / "index.html"

    monkeypatch.setattr(reporting, "build_report", built)


@pytest.mark.parametrize("text", REQUESTS)
@pytest.mark.usefixtures("nothing_drawn")
def test_a_command_is_one_that_the_suite_takes(text, elsewhere, capsys):
    verb, *arguments = shlex.split(text)[3:]
    if verb in ("run", "check"):
        if not PLACEHOLDER.search(text):
            own = ("on=", "show=") if verb == "check" else ()
            assert plan([argument for argument in arguments if argument not in MULTIRUN and not argument.startswith(own)])
    elif verb in ("evaluate", "generate"):
        # Everything is checked before the run is looked for.
        assert command([verb, *arguments]) == 2 and re.search(r"no run|no trained runs|run ID", capsys.readouterr().err)
    elif verb in ("export", "import"):
        assert command([verb, *arguments]) == 2 and re.search(r"no trained runs|no run|FOLDER", capsys.readouterr().err)
    elif verb in ("report", "list", "status", "show"):
        (elsewhere / "results" / "runs").mkdir(parents=True)
        status, said = command([verb, *arguments]), capsys.readouterr()
        # A name is answered, a store is looked into and holds nothing; a placeholder names nothing that is there.
        nothing = r"no (results|trained runs|runs|experiment) |unknown (report 'NAME'|experiment)|FOLDER"
        assert status == 0 or re.search(nothing, said.err), said.err
    else:
        assert (verb in VERBS and not arguments) or verb == "VERB"


@pytest.mark.parametrize("text", [text for text in COMMANDS if not text.startswith(SUITE)])
def test_another_command_names_what_is_there(text):
    words = shlex.split(text)
    if words[0] == "make":
        assert set(words[1:]) <= set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.M))
    for module in re.findall(r"-m (tests[.\w]+)", text):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file()
    for path in [word for word in words if word.startswith((".ci/", "tests/"))]:
        assert (ROOT / path).exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            there = (page.parent / path).resolve() if path else page
            assert there.exists(), target
            assert not anchor or anchor in slugs(there), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page):
    missing = [path for path in named(page) if path not in ADDED and not path.startswith(MADE) and not any(ROOT.glob(path))]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_sentences_begin_with_their_subject(page):
    begins = re.findall(r"(?:^|[.!?:] |\n\n|\n- |\| )((?:That of|Of) .{0,40})", prose(page))
    assert not [text for text in begins if page != ROOT / "CONTRIBUTING.md" or '"' not in text]


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.file or block.page)
def test_python_compiles_and_its_imports_resolve(block):
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}"), ast.unparse(node)


class Checkout(NamedTuple):
    """A copy of the packages to which everything that extending.md adds was added."""

    root: Path

    def suite(self, commands: list[str]) -> None:
        """Runs commands of the suite there in one process, since importing torch takes seconds; fails where one fails."""
        code = "import tests.conftest; from suite.cli import main; "
        code += f"print([words for words in {[shlex.split(c) for c in commands]!r} if main(words)])"
        # What tests do to Hydra lies in this checkout; all else is imported from the copy, where the process starts.
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=180)
        assert done.stdout.endswith("[]\n"), done.stdout + done.stderr

    def drawn(self, report: str, part: str, column: str) -> set[object]:
        """What a part of a report has in a column."""
        return set(pd.read_csv(self.root / "reports" / "build" / report / f"{part}.csv")[column])


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    root = tmp_path_factory.mktemp("extended")
    for name in ("conf", "models", "tasks", "suite", "reports"):
        # With what Python has compiled, which stays valid, since times are copied.
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("build", "gallery"))
    for file, text in ADDED.items():
        if file == METRICS:
            table = (root / file).read_text()
            assert table.count("    for metric in (\n") == 1
            text = table.replace("    for metric in (\n", f"    for metric in (\n{text.rstrip()},\n")
        assert (root / file).exists() == (file == METRICS) and (root / file).parent.is_dir(), file
        (root / file).write_text(text)
    return Checkout(root)


def planned_on_what_is_added() -> list[str]:
    """The page's own requests, which are looked at and not run."""
    requests = [
        text.removeprefix("python -m suite ") for text, page in COMMANDS.items() if page == EXTENDING and " -m suite " in text
    ]
    whole = [text for text in requests if not PLACEHOLDER.search(text)]
    planned = [re.sub("^run ", "check ", text) for text in whole if text.startswith(("run ", "check "))]
    assert len(planned) > 5 and {text.split()[0] for text in requests} <= {"run", "check", "evaluate", "report", "list"}
    return planned


def test_what_was_added_is_planned_swept_over_values_of_its_own_and_labelled_by_them(extended):
    """A model, an evaluation and its figure, then a task; nothing but files that the page shows was added."""
    quick = "run experiment=quick train.steps=4 train.warmup_steps=2 task.num_validation=32 task.num_test=32 compute.jobs=1"
    swept = [
        f"{quick} task=mqar model=retention model.mixer.decay=0.9,0.99 eval=corrupted eval.corrupted_shares=[0.1,0.4]",
        "report corrupted",
        f"{quick} task=copying model=gla task.num_symbols=16,64 eval=test",
        "report copying",
    ]
    extended.suite([*planned_on_what_is_added(), *swept])
    assert extended.drawn("corrupted", "nll_by_share", "arm") == {"Retention, decay 0.9", "Retention, decay 0.99"}
    assert extended.drawn("corrupted", "nll_by_share", "share") == {0.1, 0.4}
    assert extended.drawn("copying", "scores", "arm") >= {"GLA, num symbols 16", "GLA, num symbols 64"}
    assert extended.drawn("copying", "training", "arm") == {"GLA, num symbols 16", "GLA, num symbols 64"}


@pytest.mark.slow
@pytest.mark.parametrize("path", ["tests/models/test_laws.py", "tests/tasks/test_laws.py"])
def test_what_was_added_passes_the_laws(path, extended):
    shutil.copytree(ROOT / "tests", extended.root / "tests", dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", extended.root)
    call = [sys.executable, "-m", "pytest", "-n", "0", "-q", path, "-k", "retention or copying", "-m", "not gpu"]
    done = subprocess.run(call, cwd=extended.root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.startswith("..."), done.stdout[-3000:]
