"""The settings of a request, typed: what decides a run's numbers, and what is asked of it besides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

from conf.groups import options
from conf.settings import Count, Line, Name, Refusal, Settings, Share, near, with_neutral
from models.backends import BACKENDS, JOINT
from models.build import Model, Size, mixer_class, read_model
from suite.compute.settings import Compute, Seed, Train
from suite.request.launch import Launch
from suite.request.places import Paths
from suite.request.rates import DefaultRate
from tasks.build import read_task, task_class
from tasks.language.settings import DataSettings
from tasks.task import Task


class Match(Settings, kw_only=True):
    """How the arms of a comparison are made equal, see suite/request/match.py."""

    by: Literal["none", "parameters", "flops", "state", "state_and_parameters"]
    reference: Name
    tolerance: Share

    def __post_init__(self) -> None:
        if self.reference not in options("model"):
            models = options("model")
            raise Refusal("reference", self.reference, ", ".join(models), near(self.reference, models))


class Protocol(Settings, kw_only=True):
    """What a protocol says of how runs are chosen and averaged; what it says of the runs themselves stands in their settings.

    source: where it is from, None for this suite's own. select_on: the split on which learning rates and the like are chosen.
    average: the accuracy that is reported, over answers (micro) or over the different targets (macro). seeds: runs an arm.
    deviations: what of the published protocol is not taken over.
    """

    name: Name
    source: Line | None
    select_on: Literal["validation", "test"]
    average: Literal["micro", "macro"]
    seeds: Count
    deviations: tuple[Line, ...]


BACKEND_WORDS = f"auto, {', '.join(BACKENDS)}, or for a model of several mixers one for each, joined by {JOINT}"
Backend = Annotated[str, Meta(pattern=r"^\w+(\+\w+)*$", description=BACKEND_WORDS)]


class Chosen(Settings, kw_only=True):
    """The settings that stand by themselves at the top of conf/config.yaml."""

    seed: Seed
    backend: Backend


class Experiment(Settings, kw_only=True):
    """The name of an experiment, None where a request is of none."""

    name: Name | None


@dataclass(frozen=True)
class Config:
    """Everything that decides the numbers of a run but its data, settled: what a run is named after."""

    model: Model
    size: Size
    task: Task.Settings
    train: Train
    backend: str
    seed: int

    @property
    def title(self) -> str:
        """What a run of it is called that stands alone."""
        return f"{self.model.name} {self.size.name} {self.task.name} seed {self.seed}"

    @property
    def data_name(self) -> str:
        """The name of the data behind its task; "synthetic" where the task draws them."""
        data = getattr(self.task, "data", None)
        return "synthetic" if data is None else data.name


@dataclass(frozen=True)
class Composed:
    """A cell of a request: its configuration, and what is asked besides.

    protocol: what its scores are chosen and averaged by.
    evaluation: the settings in conf/eval, which evaluations read. default_rate: where train.lr is the default of a recipe,
    since the model has no rate of its own. written: the whole as YAML holds it. flops: what the training is to cost whose
    steps are not settled, since the cost of the matched model decides them; None where they are.
    """

    config: Config
    experiment: str | None
    protocol: Protocol
    match: Match
    paths: Paths
    compute: Compute
    launch: Launch
    data: DataSettings
    evaluation: Mapping[str, Any]
    default_rate: DefaultRate | None
    written: Mapping[str, Any]
    flops: float | None


def saved_config(written: Mapping[str, Any]) -> Config:
    """The configuration of a saved run. Keys that were added since are at their neutral values, so that its name stays.

    Raises ValueError, KeyError and TypeError for what is no configuration.
    """
    model = dict(written["model"])
    for name in model["pattern"]:
        model[name] = with_neutral(mixer_class(model[name]["type"]).Settings, model[name])
    task = with_neutral(task_class(written["task"]["type"]).Settings, written["task"])
    return Config(
        model=read_model(model),
        size=Size.read(written["size"], "size"),
        task=read_task(task),
        train=Train.read(with_neutral(Train, written["train"]), "train"),
        backend=written["backend"],
        seed=written["seed"],
    )
