"""The state of a run's code: it changes with what is computed, and with nothing else."""

from __future__ import annotations

import functools
import importlib.util
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from suite.request.compose import compose_one
from suite.store import code_state
from tests.suite.conftest import ROOT

RUN = {"mixers": ["deltanet.DeltaNet"], "task": "mqar.MQAR"}
SCRIPT = """import json, sys
from suite.store.code_state import code_state
assert "torch" not in sys.modules and "models" not in sys.modules
from types import SimpleNamespace as Named
run = json.loads(sys.argv[1])
model = Named(mixers=[Named(type=name) for name in run["mixers"]])
print(*(code_state(Named(model=model, task=Named(type=run["task"]), backend=name)) for name in ("torch", "fla", "triton")))"""


def states(root: Path) -> list[str]:
    """The states of a run with each backend, by the code under a root: a copy of the module looks at what lies around it."""
    spec = importlib.util.spec_from_file_location("copied_code_state", root / "suite" / "store" / "code_state.py")
    copied = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copied)
    assert root == copied.ROOT
    return [copied._state(tuple(RUN["mixers"]), RUN["task"], backend) for backend in ("torch", "fla", "triton")]


@functools.cache
def states_now() -> list[str]:
    return states(ROOT)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages; what was read of a file there is kept until its content changes."""
    folder = tmp_path_factory.mktemp("copied")
    for package in ("models", "tasks", "suite", "conf"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture
def root(copied: Path) -> Iterator[Path]:
    """The copy, which a test may change: afterwards it is as it was."""
    texts = {path: path.read_bytes() for path in copied.rglob("*.py")}
    yield copied
    for path in [path for path in copied.rglob("*.py") if path not in texts]:
        path.unlink()
    for path, text in texts.items():
        if path.read_bytes() != text:
            path.write_bytes(text)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, old
    path.write_text(text.replace(old, new))


def test_a_state_is_12_digits_and_the_same_anywhere(root):
    now = states_now()
    assert all(len(state) == 12 and int(state, 16) >= 0 for state in now)
    call = [sys.executable, "-c", SCRIPT, json.dumps(RUN)]
    done = subprocess.run(call, cwd=root, env={"PYTHONPATH": str(root)}, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == now
    assert len({state[:6] for state in now}) == 1
    assert now[0] != now[1]
    assert code_state.code_state(compose_one(["model=deltanet", "task=mqar", "backend=torch"]).config) == now[0]


def test_comments_docstrings_imports_and_order_change_nothing(root):
    path = root / "models" / "ops" / "delta_rule.py"
    head, mark, body = path.read_text().partition("\n\n\n")
    parts = body.strip().split("\n\n\n")
    assert len(parts) > 1
    parts = [f"# Another order.\n{part}" for part in reversed(parts)]
    path.write_text(
        '"""Said otherwise."""\nimport math as unused\n' + head.partition('"""\n')[2] + "\n\n\n" + "\n\n\n".join(parts)
    )
    assert states(root) == states_now()


def test_a_definition_that_moves_to_another_file_changes_nothing(root):
    path = root / "models" / "components.py"
    text = path.read_text()
    start = text.index("class ShortConvolution")
    end = text.find("\nclass ", start + 1) if "\nclass " in text[start + 1 :] else len(text)
    moved = text[start:end]
    (root / "models" / "convolution.py").write_text("import torch\nfrom models.mixer import State\n" + moved)
    path.write_text("from models.convolution import ShortConvolution\n" + text[:start] + text[end:])
    assert states(root) == states_now()


@pytest.mark.parametrize(
    "file, old, new",
    [
        ("models/deltanet.py", "class DeltaNet(", "class DeltaNet(object, "),
        ("models/ops/delta_rule.py", "def recurrent(", "def recurrent(unused=0, "),
        ("models/backbone/blocks.py", "class RMSNorm(", "class RMSNorm(object, "),
        ("tasks/mqar.py", "class MQAR(", "class MQAR(object, "),
        ("suite/compute/step.py", "step_loss.backward()", "(2 * step_loss).backward()"),
        ("suite/compute/optimization.py", "def learning_rate(", "def learning_rate(unused=0, "),
    ],
)
def test_a_state_follows_the_code_of_its_own_run(root, file, old, new):
    edit(root / file, old, new)
    assert all(after != before for after, before in zip(states(root), states_now(), strict=True))


def test_the_code_of_others_changes_nothing(root):
    edit(root / "models/mesa/mixer.py", "class Mesa(", "class Mesa(object, ")
    edit(root / "models/rglru.py", "class RGLRU(", "class RGLRU(object, ")
    edit(root / "tasks/parity.py", "class Parity(", "class Parity(object, ")
    edit(root / "suite/cli.py", "def main(", "def main(unused=0, ")
    assert states(root) == states_now()


def test_an_adapter_counts_where_its_backend_computes(root):
    edit(root / "models/backends/fla.py", "def delta_rule(", "def delta_rule(unused=0, ")
    after = states(root)
    assert [after[i] == states_now()[i] for i in range(3)] == [True, False, True]
    assert after[1][:6] == states_now()[1][:6]


def test_a_state_costs_little_and_many_runs_nothing_more():
    config = compose_one(["model=mesanet", "task=mqar", "backend=torch"]).config
    code_state._state.cache_clear()
    began = time.process_time()
    first = code_state.code_state(config)
    once = time.process_time() - began
    assert {code_state.code_state(config) for _ in range(5000)} == {first}
    assert once < 1 and time.process_time() - began < once + 0.5


def test_states_are_the_same_where_the_table_says_so(tmp_path, monkeypatch):
    table = tmp_path / "table.json"
    table.write_text(json.dumps({"gla mqar": [["aaaaaa", "bbbbbb"], ["cccccc"]]}))
    monkeypatch.setattr(code_state, "TABLE", table)
    code_state._declared.cache_clear()
    assert code_state.same_state("aaaaaa111111", "bbbbbb111111")
    assert code_state.same_state("dddddd111111", "dddddd111111")
    assert not code_state.same_state("aaaaaa111111", "cccccc111111")
    # What a backend adds is never declared: no golden loss was made with it.
    assert not code_state.same_state("aaaaaa111111", "bbbbbb222222")
    code_state._declared.cache_clear()


def test_whoever_looks_again_reads_no_source_until_one_has_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    record = RUN | {"states": [states_now()[0]], "backend": "torch"}
    made, read = [], code_state._state

    def counted(*of):
        made.append(of)
        return read(*of)

    monkeypatch.setattr(code_state, "_state", counted)
    for sources in ([("a", (1, 2, 3, 4))], [("a", (1, 2, 3, 4))], [("a", (1, 2, 3, 5))]):
        monkeypatch.setattr(code_state, "_sources", lambda sources=sources: sources)
        code_state._kept_state.cache_clear()
        assert code_state.age(record) == "today"
    assert len(made) == 2
    code_state._kept_state.cache_clear()
    assert code_state.age(record | {"mixers": ["gone.Mixer"]}) == "another"
