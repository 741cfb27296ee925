"""The notebook in docs/: its lines are requests and names that there are, and it runs from its first cell to its last."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import suite
from suite.plan import plan

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def cells() -> list[str]:
    read = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in read if cell["cell_type"] == "code"]


def test_the_names_of_the_notebook_are_there_and_its_requests_are_planned():
    tree = ast.parse("\n".join(cells()))
    assigned = [node for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)]
    values = {node.targets[0].id: node.value for node in assigned}
    asked = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "suite"]
    assert len(asked) > 4 and not [node.attr for node in asked if not hasattr(suite, node.attr)]
    runs = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("run", "report")]
    for call in runs:
        words = [values[each.value.id] if isinstance(each, ast.Starred) else each for each in call.args]
        typed = [ast.literal_eval(word) for word in words]
        assert plan([word for each in typed for word in ([each] if isinstance(each, str) else each)])
    assert len(runs) == 3


@pytest.mark.slow
def test_every_cell_of_the_notebook_runs(tmp_path):
    """As somebody who opens it in an empty folder would run it; a tenth of its training steps is enough for that."""
    code, steps = cells(), ("train.steps=60", "train.warmup_steps=6")
    assert all("".join(code).count(each) == 2 for each in steps)
    code = [cell.replace(steps[0], "train.steps=6").replace(steps[1], "train.warmup_steps=2") for cell in code]
    # The last expression of a cell is what a notebook would show.
    program = "import sys\nfor cell in sys.stdin.read().split('\\0'):\n    exec(compile(cell, 'cell', 'exec'), globals())\n"
    program += "print(runs['status'].tolist(), len(test), page.is_file(), tuple(logits.shape[:2]))\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, input="\0".join(code), capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=280
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['done', 'done', 'done', 'done'] 4 True (1, 8)"
    assert "The module " in done.stdout
