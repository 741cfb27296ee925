"""What people type by mistake, and the one line that helps: the whole of it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from conf.groups import options
from suite.cli import main

IDS = ("1a2b3c4d5e6f", "1a2bffffffff", "77777777777f")
MODELS, EXPERIMENTS, EVALS = (", ".join(options(group)) for group in ("model", "experiment", "eval"))
VERBS = "run, evaluate, generate, export, import, report, list, status, show, check, doctor, tune"
FLAGS = "-h, --help, --version, -V, -m, --multirun"
LISTED = "models, tasks, experiments, reports, evaluations, protocols, recipes, sizes, runs"
SECTIONS = "experiment, seed, backend, match, paths, model, size, task, data, train, eval, compute, launch, protocol"
TOP = "backend, compute, data, eval, experiment, launch, match, model, paths, protocol, seed, size, task, train"
SHOWN = "show takes run=ID, the beginning of an id; or model=NAME, task=NAME, experiment=NAME"
KNOWN = f"(permitted: {', '.join(IDS)}, or the beginning of one)"
KEYS = "(permitted are columns of `list runs`, such as model, seed, status and train.lr, and metrics, such as accuracy)"
WORD = "is not of the form key=value; did you mean"
LIST = "Several are a list without spaces, KEY=A,B"

SLIPS = [
    ("trian", f"unknown verb 'trian'; did you mean run? (permitted: {VERBS})"),
    ("-v", f"unknown flag '-v'; did you mean -V? (permitted: {FLAGS})"),
    ("check --model mesanet", f"'--model' is no flag: keys are typed without dashes, model=VALUE (flags: {FLAGS})"),
    ("check --lr=1e-3", f"'--lr=1e-3' is no flag: keys are typed without dashes, lr=1e-3 (flags: {FLAGS})"),
    ("list", f"list takes one of {LISTED}"),
    ("list rnus", f"unknown list 'rnus'; did you mean runs? (permitted: {LISTED})"),
    ("list models where=a", "list models takes no where, which is for list runs"),
    ("list runs limit=0 STORE", "limit=0 is out of range, permitted are whole numbers from 1"),
    ("list runs foo=1", "unknown key 'foo' (permitted: where, sort, columns, limit, paths.results, paths.reports)"),
    ("list runs where=a where=b", "where is given twice, permitted is once; conditions and keys are separated by commas"),
    ("list runs", "paths.results=results (in HERE) is no folder; permitted is one that `run` has made"),
    ("list runs paths.results=HERE/no", "paths.results=HERE/no is no folder; permitted is one that `run` has made"),
    ("show", SHOWN),
    ("show 1a 2b", f"{SHOWN}; not 2 of them"),
    ("show mesanet", f"{SHOWN}; did you mean model=mesanet?"),
    ("show model=mesanett", f"unknown model 'mesanett'; did you mean mesanet? (permitted: {MODELS})"),
    ("show run=9 STORE", f"unknown run '9' {KNOWN}"),
    ("show 1a2b STORE", f"run=1a2b is the beginning of 2 runs, permitted are more letters: {', '.join(IDS[:2])}"),
    ("evaluate", "evaluate takes run=ID (or several, run=ID,ID) or run=all"),
    ("evaluate 1a2b eval=solver", "evaluate takes run=ID (or several, run=ID,ID) or run=all; did you mean run=1a2b?"),
    (
        "evaluate run=1a2b eval=test STORE",
        f"run=1a2b is the beginning of 2 runs, permitted are more letters: {', '.join(IDS[:2])}",
    ),
    ("evaluate run=abc STORE", f"unknown run 'abc' {KNOWN}"),
    ("evaluate run=abc", "no trained runs under results (in HERE)"),
    ("evaluate run=1a2b3 eval=al STORE", f"unknown eval 'al'; did you mean all? (permitted: {EVALS})"),
    (
        "evaluate run=all train.lr=1 STORE",
        "'train.lr=1' can't be changed in a finished run, permitted are eval, paths, compute, data.path, data.validation_path, "
        "data.tokenizer",
    ),
    ("generate 1a2b 'Once upon'", f"'1a2b' {WORD} run=1a2b?"),
    ("generate run=1a2b 'Once upon'", f"'Once upon' {WORD} prompt='Once upon'?"),
    ("check mesanet", f"'mesanet' {WORD} model=mesanet? {LIST}"),
    ("check model mesanet", f"'model' {WORD} model=NAME? {LIST}"),
    ("check model=mesanet, gla", f"'gla' {WORD} model=gla? {LIST}"),
    ("check model=mesanett", f"unknown model 'mesanett'; did you mean mesanet? (permitted: {MODELS})"),
    ("check experiment=quik", f"unknown experiment 'quik'; did you mean quick? (permitted: {EXPERIMENTS})"),
    ("check lr=1e-3", f"unknown key 'lr'; did you mean train.lr? (permitted beside it: {TOP})"),
    ("check d_model=8", f"unknown key 'd_model'; did you mean size.d_model? (permitted beside it: {TOP})"),
    ("run run=1a2b", f"'run=1a2b' is for evaluate, generate and show; permitted are keys of {SECTIONS}"),
    (
        "check model=mesanet,gla model.mixer.solver.max_steps=3",
        "unknown key 'model.mixer.solver.max_steps' of model=gla; did you mean model.mixer.norm_eps? (permitted are keys of "
        f"{SECTIONS})",
    ),
    ("check task=mqar data=text", "data=text: task=mqar reads no text; permitted with it is data=stdlib"),
    ("check model=gla eval=solver", "eval=solver: solver does not apply to any run, not to gla tiny language seed 0"),
    ("check seed=a", "seed=a is not a whole number, permitted are whole numbers from 0 to 4294967295"),
    ("check seed=-1", "seed=-1 is out of range, permitted are whole numbers from 0 to 4294967295"),
    ("check train.steps=1.5", "train.steps=1.5 is not a whole number, permitted are whole numbers from 0 to 2147483647, null"),
    ("check train.lr=abc", "train.lr=abc is not a number, permitted are numbers above 0, up to 1e+38"),
    ("check train.betas=3", "train.betas=3 is not a list, permitted are lists of 2 numbers from 0 to below 1"),
    ("check compute.wait=no", "compute.wait=no is not true or false, permitted are true, false"),
    ("check compute.device=gpu", "compute.device=gpu is unknown, permitted are auto, cpu, cuda; did you mean cpu?"),
    ("check model=gla model=mesanet", "model is given twice; several values are a list, model=A,B"),
    ("doctor me", "doctor takes no arguments, not 'me'"),
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch) -> Path:
    """A working folder without results, beside a store of trained runs."""
    for name in IDS:
        (tmp_path / "store" / "runs" / name).mkdir(parents=True)
        for file in ("run.json", "train.json"):
            (tmp_path / "store" / "runs" / name / file).write_text("{}")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.parametrize(("typed", "said"), SLIPS, ids=[typed for typed, _ in SLIPS])
def test_a_slip_is_answered_in_one_line(typed, said, here, capsys):
    store = f"paths.results={here.parent / 'store'}"
    arguments = [word.replace("HERE", str(here)) for word in shlex.split(typed.replace("STORE", store))]
    assert main(arguments) == 2
    assert capsys.readouterr() == ("", f"error: {said.replace('HERE', str(here))}\n") and not list(here.iterdir())


@pytest.mark.parametrize("typed", ["--version", "-V", "run --version", "list runs -V"])
def test_the_version_is_said_wherever_it_is_asked_for(typed, capsys):
    assert main(typed.split()) == 0 and capsys.readouterr().out.startswith("linear-rnn-suite ")


def test_help_of_a_verb_is_that_verb_s_help(capsys):
    assert main(["help", "list"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: python -m suite list: ") and "\n  where=CONDITIONS  (" in said and "\n  sort=KEYS  (" in said
