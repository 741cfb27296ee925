"""Expansion of requests and what wrong ones are told."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import pytest

from conf.groups import CONF, options
from conf.settings import RequestError
from suite.cli import main
from suite.plan import plan, plan_request
from suite.request.overrides import read_request


def cells(*arguments: str) -> set[frozenset[str]]:
    return {frozenset(cell) for cell in read_request(arguments).cells}


def test_comma_lists_make_every_combination():
    assert cells("model=gla,hawk", "seed=0,1", "task=mqar") == {
        frozenset({f"model={m}", f"seed={s}", "task=mqar"}) for m in ("gla", "hawk") for s in (0, 1)
    }


def test_a_list_in_brackets_is_one_value():
    assert cells("train.betas=[0.8,0.9]") == {frozenset({"train.betas=[0.8,0.9]"})}


def test_a_glob_and_a_range_expand():
    assert {next(iter(cell)) for cell in cells("model=glob(swa*)")} == {
        f"model={m}" for m in options("model") if m.startswith("swa")
    }
    assert len(cells("seed=range(0,3)")) == 3


def test_an_override_narrows_the_grid_of_an_experiment():
    whole = cells("experiment=quick")
    assert len(whole) == 26
    narrowed = cells("experiment=quick", "task=mqar", "model=gla,mesanet")
    assert narrowed == {frozenset({"experiment=quick", "task=mqar", f"model={m}"}) for m in ("gla", "mesanet")}


def test_a_value_that_the_grid_does_not_list_takes_its_place():
    assert cells("experiment=quick", "model=swa256") == {
        frozenset({"experiment=quick", f"task={t}", "model=swa256"}) for t in ("language", "mqar")
    }


def test_an_axis_outside_the_grid_multiplies_it():
    assert len(cells("experiment=quick", "seed=0,1,2")) == 78


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("model=mesanett", ("mesanett", "did you mean mesanet?")),
        ("task=mqarr", ("mqarr", "did you mean mqar?")),
        ("train.stepz=3", ("train.stepz", "did you mean train.steps?")),
        ("trian.steps=3", ("trian.steps", "did you mean train.steps?")),
        ("experiment=quik", ("quik", "did you mean quick?")),
        (
            "model.mixr.key_dim=3",
            ("model.mixr.key_dim", "did you mean model.mixer.key_dim?", "permitted are keys of experiment, "),
        ),
        ("train.steps", ("train.steps", "key=value")),
        ("task.seq_len=0", ("task.seq_len=0", "whole numbers from 1")),
        ("train.lr=-0.1", ("train.lr=-0.1", "above 0")),
        ("train.lr=nan", ("train.lr=nan", "above 0")),
        ("train.steps=many", ("train.steps=many", "whole numbers")),
        ("train.autocast=float8", ("train.autocast=float8", "none, bfloat16")),
        ("backend=fla", ("backend=fla", "torch")),
        ("backend=flaa", ("backend=flaa", "permitted are auto, torch, fla", "did you mean fla?")),
        ("match.by=weight", ("match.by=weight", "parameters")),
        ("eval.stages=[positions]", ("'positions'", "position")),
        ("size.num_heads=0", ("num_heads", "from 1")),
        ("data=text", ("data.path", "data.path=VALUE")),
        ("experiment=quick,small", ("quick,small", "one experiment")),
        ("+model=hawk", ("+model=hawk", "key=value")),
        ("~model", ("~model", "key=value")),
        ("+train.foo=1", ("+train.foo=1", "key=value")),
        ("compute.jobs=abc", ("compute.jobs=abc", "from 1")),
        ("compute.jobs=0", ("compute.jobs=0", "from 1")),
        ("train.betas=[2.0,3.0]", ("train.betas", "from 0 to below 1")),
        ("train.warmup_steps=1000", ("train.warmup_steps=1000", "train.steps")),
        ("seed=99999999999999999999", ("seed=", "4294967295")),
        ("eval.batch_size=0", ("eval.batch_size=0", "from 1")),
        ("eval.limit=abc", ("eval.limit=abc", "from 1")),
        ("model.pattern=[]", ("model.pattern", "one mixer")),
        ("hydra/sweeper=basic", ("hydra/sweeper", "permitted: hydra/launcher")),
        ("hydra.launcher.n_jobs=2", ("hydra.launcher.n_jobs=2", "hydra/launcher=NAME")),
        ("hydra.run.dir=x", ("hydra.run.dir", "permitted: hydra/launcher")),
        ("data.validation_fraction=0.05", ("data.validation_fraction=0.05", "0.1")),
    ],
)
def test_a_wrong_request_is_one_clear_line_and_writes_nothing(argument, said, tmp_path, capsys):
    results = tmp_path / "results"
    assert main(["run", argument, f"paths.results={results}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(part in error for part in said), error
    assert not results.exists()


def test_a_key_given_twice_is_refused():
    with pytest.raises(RequestError, match="seed is given twice"):
        read_request(["seed=0", "seed=1"])


def test_a_key_that_only_the_grid_has_may_be_overridden():
    cells_of_four = cells("experiment=small", "task=mqar", "task.num_pairs=[4]", "seed=0", "model=gla", "size.head_dim=8")
    assert len(cells_of_four) == 1 and "task.num_pairs=[4]" in next(iter(cells_of_four))


def test_one_and_one_point_zero_are_one_number():
    (first,), (second,) = (plan(["model=gla", "task=mqar", f"train.gradient_clip={one}"]) for one in ("1", "1.0"))
    assert first.run_id == second.run_id


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["model=hawk", "size.num_heads=7", "task=mqar"], "7"),
        (
            ["match.by=parameters", "match.reference=transformer", "size.mlp_dim=1", "model=hawk", "task=mqar"],
            "match.by=parameters",
        ),
        (
            ["match.by=state", "match.tolerance=0.0001", "model=swa4", "match.reference=mesanet", "task=mqar", "size.head_dim=8"],
            "match.by=state",
        ),
        (["data=text", "data.path=/nowhere/*.txt"], "/nowhere/*.txt"),
        (["model=hawk", "model.mixer.width_multiplier=1e38", "task=mqar"], "can't be built"),
        (["model=gla", "model.mixer.key_dim=2147483647", "model.mixer.num_heads=2147483647", "task=mqar"], "can't be built"),
    ],
)
def test_what_only_building_shows_is_one_clear_line_too(arguments, said, tmp_path, capsys):
    assert main(["run", *arguments, f"paths.results={tmp_path / 'results'}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["model=kda,deltaproduct", "model.mixer.affine_keys=true"], "with negative_eigenvalues (model=deltaproduct)"),
        (["model=gla,hawk", "size.num_heads=7"], "width_multiplier * d_model 64 (model=hawk)"),
        (["model=deltaproduct", "model.mixer.affine_keys=true"], "with negative_eigenvalues\n"),
        (["model=gla,rwkv7", "model.mixer.affine_keys=true"], "unknown key 'model.mixer.affine_keys' of model=rwkv7;"),
    ],
)
def test_the_one_of_several_models_that_refuses_is_named(arguments, said, capsys):
    assert main(["check", "task=mqar", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and error.count("model=") == said.count("model=")


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "empty"), (b"\x00\x01\x02", "binary"), (b"\xff\xfe\xfd", "UTF-8"), (b"too short", "seq_len")]
)
def test_a_text_that_can_not_be_used_is_named(content, said, tmp_path, capsys):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    assert main(["run", "data=text", f"data.path={path}", f"paths.results={tmp_path / 'results'}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error
    assert not (tmp_path / "results").exists()


def apart(cells: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The first cell of every model at every size, and the first of all other settings together, tasks among them."""
    seen, found = set(), []
    for cell in cells:
        keys = {override: override.lstrip("+").partition("=")[0] for override in cell}
        built = frozenset(each for each, key in keys.items() if key.split(".")[0] in ("model", "size"))
        rest = frozenset(each for each, key in keys.items() if key.split(".")[0] not in ("model", "size"))
        if {built, rest} - seen:
            found.append(cell)
            seen |= {built, rest}
    return found


# Every setting of every experiment, or the first and the last one.
@pytest.mark.parametrize("step", [None, pytest.param(1, marks=pytest.mark.slow)], ids=["ends", "all"])
@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_experiment_composes_and_its_models_build(experiment, step):
    # One seed and one rate, so that it takes seconds.
    request = read_request([f"experiment={experiment}", "data=stdlib", "seed=0", "train.lr=0.004"])
    cells = apart(request.cells)
    assert {each for cell in cells for each in cell} == {each for cell in request.cells for each in cell}
    chosen = cells[:: step or max(1, len(cells) - 1)]
    runs = plan_request(dataclasses.replace(request, cells=chosen))
    assert runs and all(run.experiment == experiment for run in runs)


@pytest.mark.parametrize("size", options("size"))
def test_matching_meets_the_reference_at_every_size(size):
    for run in plan([f"size={size}", "model=mesanet,hawk,gla", "match.by=parameters", "match.tolerance=0.005", "task=mqar"]):
        assert run.cost.parameters > 0
    with pytest.raises(RequestError, match="out of range"):
        plan([f"size={size}", "size.num_blocks=0", "task=mqar"])


@pytest.mark.parametrize("by", ["parameters", "flops"])
def test_a_wide_mlp_is_matched_to_rows_that_a_gpu_multiplies_fast(by):
    tolerance = "match.tolerance=0.02"
    wide = plan(["size=400m", "model=mesanet,hawk,linear_attention", f"match.by={by}", tolerance, "task=efficiency", "eval=none"])
    assert all(run.config.size.mlp_dim % 8 == 0 for run in wide)
    (narrow,) = plan(["size=tiny", "model=mesanet", "match.by=parameters", "task=efficiency", "eval=none"])
    assert narrow.config.size.mlp_dim == 187


@pytest.mark.parametrize("by", ["parameters", "flops", "state"])
def test_matched_arms_agree(by):
    quantity = {"parameters": "parameters", "flops": "flops_per_token", "state": "state_bytes"}[by]
    # Mesa's solver alone costs more FLOPs than all of Gated DeltaNet.
    other = "hawk" if by == "flops" else "mesanet"
    models = "match.reference=gated_deltanet", f"model=gated_deltanet,{other}"
    # Few other sizes are near those of small heads.
    runs = plan([f"match.by={by}", *models, "match.tolerance=0.05", "task=mqar", "size.head_dim=8"])
    first, second = (getattr(run.cost, quantity) for run in runs)
    assert abs(first / second - 1) <= 0.05


def test_an_arm_is_matched_alike_alone_and_beside_others():
    axes = "train.autocast=none,bfloat16", "match.by=parameters,state"
    request = ["model=mesanet", "match.reference=transformer", "match.tolerance=0.1", "task=mqar", "eval=none", *axes]
    request.append("size.head_dim=8")
    alone = [plan(cell)[0].config.size for cell in read_request(request).cells]
    assert [run.config.size for run in plan(request)] == alone and len(set(alone)) == 3


def test_every_value_of_a_group_has_a_file():
    assert CONF.is_dir() and {"mqar", "language"} <= set(options("task")) and {"tiny", "small", "1b"} <= set(options("size"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["task=mqar", "eval=lm_eval"], "eval=lm_eval: lm_eval does not apply to any run, not to mesanet tiny mqar seed 0"),
        (["task=mqar", "model=gla", "eval=solver,cost"], "eval=solver: solver does not apply to any run"),
        (["task=mqar", "model=gla", "eval.stages=[internals]"], "internals does not apply to any run"),
        (["task=mqar", "data=text", "data.path=x.txt"], "data=text: no run reads a text"),
        (["task=mqar", "data.path=x.txt"], "data.path=[x.txt] is out of range, permitted are null with data=stdlib"),
        (
            ["task=mqar", "model=kda_hybrid", "model.pattern=[mixer]", "model.attention.window=2,4"],
            "model.attention.window=2,4: no run has attention in its pattern, not kda_hybrid tiny mqar seed 0",
        ),
        (
            [
                "task=mqar",
                "model=kda",
                "+model.mesa={type: attention.Attention, num_heads: 2, key_dim: 8, window: 4, rope_base: null}",
            ],
            "no run has mesa in its pattern",
        ),
    ],
)
def test_what_no_run_has_a_use_for_is_refused(arguments, said, tmp_path, capsys):
    assert main(["run", *arguments, f"paths.results={tmp_path / 'results'}"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["task=mqar", "eval=all"],
        ["task=mqar", "eval=none"],
        ["task=mqar", "eval=default"],
        ["task=mqar", "model=gla,mesanet", "eval=internals"],
        ["task=mqar", "data=stdlib"],
        ["task=mqar", "model=kda_hybrid", "model.pattern=[mixer],[mixer,attention]", "model.attention.window=4"],
        ["task=mqar", "model=kda", "model.label=Other"],
    ],
)
def test_what_some_run_has_a_use_for_is_planned(arguments):
    assert plan(arguments)
