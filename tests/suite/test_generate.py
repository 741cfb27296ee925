"""A trained model goes on with a text, wherever it was trained."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import suite
from models.backbone.generation import generate
from suite.cli import main
from suite.request.compose import compose_one
from suite.request.identity import identity, run_id
from suite.saved import saved_run, trained_ids
from tests.suite.store.old_store import unsealed

TINY = ("size.d_model=16", "size.num_blocks=1", "size.num_heads=2", "size.head_dim=8", "size.mlp_dim=16", "eval=none")
STEPS = ("train.steps=2", "train.warmup_steps=1", "train.batch_size=4", "compute.jobs=1")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mesa model on text, an attention on recall, and the first once more as a run of another backend."""
    folder = tmp_path_factory.mktemp("generate")
    (folder / "text.txt").write_text("\n<|endoftext|>\n".join("a small text, at every token " * 3 for _ in range(60)))
    data = ["data=text", f"data.path={folder / 'text.txt'}", "data.validation_fraction=0.3", "task.seq_len=24"]
    paths = [f"paths.results={folder}", f"paths.cache={folder / 'cache'}"]
    assert main(["run", "model=mesanet", *data, *TINY, *STEPS, *paths]) == 0
    trained = saved_run(folder, trained_ids(folder)[0], compose_one([]))
    assert main(["run", "task=mqar", "model=swa4", "task.num_validation=8", "task.num_test=8", *TINY, *STEPS, *paths]) == 0
    other = run_id(identity(replace(trained.config, backend="triton"), data_fingerprint=trained.data_fingerprint))
    shutil.copytree(folder / "runs" / trained.run_id, folder / "runs" / other)
    config = folder / "runs" / other / "config.yaml"
    config.write_text(config.read_text().replace("backend: torch", "backend: triton"))
    unsealed(config.parent)
    return folder


def ids(store: Path) -> dict[str, str]:
    """The run of each kind."""
    runs = [saved_run(store, each, compose_one([])) for each in trained_ids(store)]
    return {f"{run.config.task.name} {run.config.backend}": run.run_id for run in runs}


def test_it_prints_the_prompt_and_what_the_model_says(store, capsys):
    run, asked = ids(store)["language torch"], ["prompt=at every=", "tokens=12", "temperature=0", "solver_steps=3"]
    assert main(["generate", f"run={run[:6]}", *asked, "compute.device=cpu", f"paths.results={store}"]) == 0
    said = capsys.readouterr().out
    model = suite.load_model(run, store)
    prompt = torch.tensor([[256, *b"at every="]])
    (following,) = generate(model, prompt, num_tokens=12, temperature=0.0, top_k=None, seed=0).tolist()
    following = following[: following.index(256)] if 256 in following else following
    assert said == "at every=" + bytes(following).decode(errors="replace") + "\n"
    assert main(["generate", f"run={run}", f"paths.results={store}", "top_k=3", "tokens=3", "seed=5"]) == 0


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["tokens=3"], "run=ID"),
        (["run=feed"], "unknown run 'feed'"),
        (["run=RUN", "tokens=0"], "tokens=0"),
        (["run=RUN", "tokens=many"], "tokens=many"),
        (["run=RUN", "temperature=hot"], "temperature=hot"),
        (["run=RUN", "temperature=-1"], "temperature=-1"),
        (["run=RUN", "top_k=0"], "top_k=0 is out of range, permitted are whole numbers from 1"),
        (["run=RUN", "solver_steps=-2"], "solver_steps=-2"),
        (["run=RUN", "promt=a"], "did you mean prompt"),
        (["run=RUN", "prompt"], "key=value"),
        (["run=RUN", "backend=triton", "compute.device=cpu"], "backend=triton can't run here"),
        (["run=RUN", "compute.device=tpu"], "compute.device=tpu"),
        (["run=MQAR"], "trained on mqar"),
    ],
)
def test_a_wrong_request_is_one_line(store, capsys, asked, said):
    named = {"run=RUN": f"run={ids(store)['language torch']}", "run=MQAR": f"run={ids(store)['mqar torch']}"}
    capsys.readouterr()
    assert main(["generate", *(named.get(each, each) for each in asked), f"paths.results={store}"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_run_of_another_backend_loads_here_and_is_evaluated_only_by_its_own(store, capsys):
    there, here = ids(store)["language triton"], ids(store)["language torch"]
    tokens = torch.arange(20).unsqueeze(0)
    assert torch.equal(suite.load_model(there, store)(tokens)[0], suite.load_model(here, store, backend="torch")(tokens)[0])
    with pytest.raises(ValueError, match="backend=triton can't run here"):
        suite.load_model(there, store, backend="triton")
    paths = [f"paths.results={store}", f"paths.cache={store / 'cache'}"]
    assert main(["evaluate", f"run={there}", "eval=position", "compute.device=cpu", *paths]) == 2
    error = capsys.readouterr().err
    assert f"run {there}" in error and "can't run here" in error and error.count("\n") == 1
