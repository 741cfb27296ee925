"""Composing a request by sections gives what Hydra gives for each whole cell, and asks Hydra as often as there are options."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from conf.groups import CONF, find, options
from conf.settings import RequestError, flat
from suite.plan import plan
from suite.request import compose as sections
from suite.request.compose import Composer, compose_one
from suite.request.overrides import read_request

# Options and values that go with every model, task and size.
CHOICES = ["train=parity", "eval=solver", "eval=all", "compute=gpu", "eval=none", "data=stdlib"]
VALUES = [
    *("seed=3", "backend=torch", "train.lr=1e-3", "train.betas=[0.8,0.9]", "match={by: flops}"),
    *("size.head_dim=8", "size.d_model=${size.mlp_dim}", "size.norm_eps=1e-5", "match.tolerance=1"),
    *("eval.solvers=[{},{max_steps: 2}]", "eval.tasks='a,b'", "paths.results=elsewhere", "model.version=7"),
    *("experiment.name=mine", "+model.lr.another.tiny=0.5", "data.validation_fraction=0.25", "match.reference=gla"),
]
ALONE = [
    ["data=text", "data.path=[a.txt,b.txt]"],
    ["data=text", "data.path=[a.txt]", "data.tokenizer=t.json", "task=language"],
    ["model=mesanet", "model.mixer.solver={max_steps: 5, tolerance: 0}"],
    ["model=hawk_mesa", "model.mesa.solver.max_steps=5"],
    ["model=gla", "size.num_heads=4", "model.mixer.key_dim=${size.d_model}"],
    ["+model.second=${model.mixer}", "model=gla"],
    ["model=gla", "model.mixer={chunk_size: 4}", "train.betas=[0.5,0]"],
    ["task=mqar", "task.seq_len=${task.vocab_size}", "task.num_pairs=[4]"],
    ["task=parity", "train=mqar"],
    [],
]


def sample(count: int) -> list[list[str]]:
    """Requests of one cell: a model, a task and a size, often an experiment, and options and values of others."""
    drawn, found = random.Random(0), [list(each) for each in ALONE]
    for _ in range(count):
        cell = [f"{group}={drawn.choice(options(group))}" for group in ("model", "size")]
        experiment = drawn.choice(options("experiment")) if drawn.random() < 0.5 else ""
        cell += [f"experiment={experiment}"] if experiment else []
        # An experiment that sets values of a task, or follows a protocol that may, goes with its own task alone.
        text = find("experiment", experiment).read_text() if experiment else ""
        cell += [] if re.search("^task:|/protocol:", text, flags=re.M) else [f"task={drawn.choice(options('task'))}"]
        more = [drawn.choice(CHOICES), *drawn.sample(VALUES, drawn.randrange(4))]
        drawn.shuffle(more)
        found.append([*cell, *more])
    return found


def whole(cell: list[str], cache: str) -> dict[str, Any]:
    """What Hydra makes of a cell at once, with the cache in its place."""
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose("config", [*cell, f"paths.cache={cache}"]), resolve=True)


def differing(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys whose values differ, and both values, as a file of YAML holds them."""
    ours, theirs = (dict(flat(yaml.safe_load(yaml.safe_dump(each)))) for each in (ours, theirs))
    return {
        key: (ours.get(key), theirs.get(key)) for key in {*ours, *theirs} if ours.get(key, "absent") != theirs.get(key, "absent")
    }


def test_both_ways_of_composing_give_what_hydra_gives_for_the_whole_cell():
    cells = sample(2)
    others = read_request([f"{group}={','.join(options(group))}" for group in ("model", "task", "size")]).cells
    together = Composer([*cells, *others])
    assert together._separately and not Composer([cells[-1]])._separately
    for cell in cells:
        jointly, separately = compose_one(cell), together.compose(cell)
        assert jointly == separately, cell
        assert not differing(jointly.written, whole(cell, jointly.paths.cache)), cell


def test_typed_settings_are_what_is_written():
    composed = compose_one(["model=hawk_mesa", "task=language", "size=small", "train.lr=1", "experiment=small", "seed=2"])
    config, written = composed.config, composed.written
    assert (config.size.plain(), config.train.plain()) == (written["size"], written["train"])
    assert config.task.plain() == {**written["task"], "data": composed.data.plain()}
    assert {name: mixer.plain() for name, mixer in zip(config.model.pattern, config.model.mixers, strict=True)} == {
        name: written["model"][name] for name in written["model"]["pattern"]
    }
    assert (composed.compute.plain(), composed.match.plain()) == (written["compute"], written["match"])
    assert (composed.experiment, config.seed, config.backend) == ("small", 2, "auto")
    assert type(written["train"]["lr"]) is float


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("+model.label=x", "+model.label is there already, permitted is model.label=x"),
        ("model.nope=x", "unknown key 'model.nope'; did you mean model.name? (permitted beside it: model.label, "),
        ("nope=x", "unknown key 'nope'"),
        ("train.betas.x=1", "unknown key 'train.betas.x'"),
    ],
)
def test_a_key_that_is_not_there_and_a_new_one_that_is_are_refused(typed, said):
    with pytest.raises(RequestError, match=re.escape(said)):
        compose_one([typed])


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, ...]]:
    """The options that Hydra is asked to compose, from nothing on."""
    asked: list[tuple[str, ...]] = []

    def counted(config_name: str, overrides: list[str]) -> Any:
        asked.append(tuple(each for each in overrides if each not in sections.WITHOUT))
        return compose(config_name, overrides)

    monkeypatch.setattr(sections, "compose", counted)
    sections._composed_beside.cache_clear()
    sections._touched.cache_clear()
    return asked


def test_every_option_of_200_cells_is_composed_once(calls):
    models = options("model")[:10]
    sizes = options("size")[:5]
    request = read_request([f"model={','.join(models)}", "task=mqar,parity,language,efficiency", f"size={','.join(sizes)}"])
    assert len(request.cells) == 200
    composer = Composer(request.cells)
    for cell in request.cells:
        assert composer.compose(cell).config.model.name == cell[0].partition("=")[2]
    assert len(calls) == len(set(calls)) and set(calls) == {(), *((choice,) for cell in request.cells for choice in cell)}


def test_planning_200_cells_asks_hydra_no_more_than_planning_the_cells_of_one_seed(calls):
    models = f"model={','.join(options('model')[:10])}"
    request = [models, "task=mqar,parity", "task.num_validation=8", "eval=none", "size.num_blocks=2"]
    assert len(plan([*request, "seed=0"])) == 20
    once = len(calls)
    assert len(plan([*request, "seed=range(0,10)"])) == 200
    assert len(calls) == once <= 1 + 20 + 10 + 2


def test_an_option_that_is_another_ones_default_is_composed_beside_any_task():
    many = plan(["model=gla,hawk", "task=mqar,parity", "train=language,mqar", "size=tiny,small", "eval=none"])
    alone = [
        plan([f"model={model}", f"task={task}", f"train={train}", f"size={size}", "eval=none"])[0].run_id
        for model in ("gla", "hawk")
        for task in ("mqar", "parity")
        for train in ("language", "mqar")
        for size in ("tiny", "small")
    ]
    assert len(set(alone)) == 16 and {run.run_id for run in many} == set(alone)
