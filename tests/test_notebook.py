"""The notebook in docs/ runs from its first cell to its last, as somebody who opens it in an empty folder would run it.

A tenth of its training steps is enough for that.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def test_every_cell_of_the_notebook_runs(tmp_path):
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    steps = "train.steps=60", "train.warmup_steps=6"
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
