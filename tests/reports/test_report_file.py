"""A report's YAML: what may be left out, and a mistake in one line that names the file, the part, the value and the nearest."""

from __future__ import annotations

from pathlib import Path

import pytest

from conf.groups import find
from conf.settings import RequestError
from reports.kit.page import read_page

PART = {"name": "training", "type": "figures.training_curves", "arguments": "{tasks: [mqar], smoothing: 0.05}"}
TABLE = {"name": "scores", "type": "tables.comparison"}
COLUMN = "{metric: accuracy, task: mqar, stage: test, split: test}"


def part(changes: dict[str, str]) -> str:
    lines = [f"{key}: {value}" for key, value in {**PART, **changes}.items() if value]
    return "  - " + "\n    ".join(lines) + "\n"


def table(column: str) -> str:
    return part({**TABLE, "arguments": f"{{columns: [{column}], floors: {{}}}}"})


def written(folder: Path, text: str) -> Path:
    path = folder / "quick.yaml"
    path.write_text(text)
    return path


def test_what_is_not_said_follows_from_the_names_and_the_function(tmp_path: Path) -> None:
    page = read_page(written(tmp_path, "parts:\n" + part({"name": "loss_by-step"})))
    assert (page.name, page.experiment, page.title) == ("quick", "quick", "Quick")
    (only,) = page.parts
    assert only.title == "Loss by step"
    assert only.caption == "Training loss by tokens seen, mean over seeds as far as each of them went, as a centred running mean."


def test_what_a_report_does_not_say_is_that_of_another(tmp_path: Path) -> None:
    page, other = read_page(written(tmp_path, "defaults: regbench\ntitle: In small\n")), read_page(find("report", "regbench"))
    assert (page.name, page.experiment, page.title) == ("quick", "quick", "In small")
    assert page.parts == other.parts and other.experiment == "regbench"
    assert len(read_page(written(tmp_path, "defaults: regbench\nparts:\n" + part({}))).parts) == 1


def test_anchors_stand_for_what_they_mark(tmp_path: Path) -> None:
    both = part({"arguments": "&both {tasks: [mqar], smoothing: 0}"}) + part({"name": "again", "arguments": "*both"})
    first, second = read_page(written(tmp_path, "parts:\n" + both)).parts
    assert first.arguments == second.arguments == {"tasks": ["mqar"], "smoothing": 0}


MISTAKES = {
    "a key of the page": ("titel: Quick\nparts:\n" + part({}), ["'titel'", "did you mean title?", "experiment"]),
    "an experiment": ("experiment: quik\nparts:\n" + part({}), ["experiment=quik", "did you mean quick?"]),
    "no parts": ("title: Quick\n", ["parts is needed"]),
    "an empty list of parts": ("parts: []\n", ["parts=[]", "one part or more"]),
    "an empty file": ("", ["parts is needed"]),
    "another report": ("defaults: regbnch\n", ["defaults=regbnch", "did you mean regbench?"]),
    "several reports": ("defaults: [regbench]\n", ["defaults=[regbench]", "permitted are"]),
    "a list": ("- quick\n", ["it holds a list", "parts"]),
    "a part that is a word": ("parts: [training]\n", ["parts[0]=training", "name, type"]),
    "a key of a part": ("parts:\n" + part({"argument": "{}"}), ["part 'training'", "'argument'", "did you mean arguments?"]),
    "no name": ("parts:\n" + part({"name": ""}), ["part 1", "name is needed"]),
    "a name that is a path": ("parts:\n" + part({"name": "../../x"}), ["name=../../x", "letters, digits"]),
    "two parts of a name": ("parts:\n" + part({}) + part({}), ["training, training", "different names"]),
    "a type's module": ("parts:\n" + part({"type": "figure.training_curves"}), ["did you mean figures.training_curves?"]),
    "a type's function": ("parts:\n" + part({"type": "figures.training_curve"}), ["did you mean figures.training_curves?"]),
    "code that is no part": ("parts:\n" + part({"type": "os.system"}), ["unknown part type 'os.system'"]),
    "an argument": (
        "parts:\n" + part({"arguments": "{tasks: [mqar], smooting: 1}"}),
        ["part 'training'", "arguments.smooting", "did you mean arguments.smoothing?"],
    ),
    "a missing argument": ("parts:\n" + part({"arguments": "{tasks: [mqar]}"}), ["arguments.smoothing is needed", "numbers"]),
    "no arguments": ("parts:\n" + part({"arguments": ""}), ["arguments.tasks is needed", "lists of words"]),
    "an argument's type": (
        "parts:\n" + part({"arguments": "{tasks: mqar, smoothing: 1}"}),
        ["arguments.tasks=mqar", "lists of words"],
    ),
    "a number in words": (
        "parts:\n" + part({"arguments": "{tasks: [mqar], smoothing: little}"}),
        ["arguments.smoothing=little", "permitted are numbers"],
    ),
    "a task": ("parts:\n" + part({"arguments": "{tasks: [mqra], smoothing: 0}"}), ["arguments.tasks[0]=mqra", "mean mqar?"]),
    "a column's metric": ("parts:\n" + table(COLUMN.replace("acc", "ac")), ["columns[0].metric=acuracy", "mean accuracy?"]),
    "a column's stage": ("parts:\n" + table(COLUMN.replace("stage: test", "stage: tset")), [".stage=tset", "mean test?"]),
    "a column's split": ("parts:\n" + table(COLUMN.replace("split: test", "split: vlidation")), ["mean validation?"]),
    "a column's key": (
        "parts:\n" + table("{metrik: nll, task: mqar}"),
        ["[0].metrik", "mean arguments.columns[0].metric?"],
    ),
    "a column without a task": ("parts:\n" + table("{metric: nll}"), ["arguments.columns[0].task is needed"]),
    "a floor": (
        "parts:\n" + part({**TABLE, "arguments": f"{{columns: [{COLUMN}], floors: {{accuracy: [chanse]}}}}"}),
        ["floors.accuracy[0]=chanse", "did you mean chance?"],
    ),
    "a choice": (
        "parts:\n" + part({"type": "sweep.scores", "arguments": f"{{column: {COLUMN}, fact: train.lr, best: facts}}"}),
        ["arguments.best=facts", "permitted are model, fact", "did you mean fact?"],
    ),
    "a bracket": ("parts:\n" + part({"arguments": "{tasks: [mqar"}), ["line "]),
    "a key given twice": ("title: A\ntitle: B\nparts:\n" + part({}), ["line 2", "duplicate key title"]),
    "what is no text": ("\0", ["special characters are not allowed"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_helps(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, said = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError) as refused:
        read_page(written(tmp_path, text))
    line = str(refused.value)
    assert line.startswith("quick.yaml: ") and "\n" not in line
    assert not [words for words in said if words not in line], line
