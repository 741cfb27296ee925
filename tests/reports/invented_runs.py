"""The runs of an experiment in conf/experiment, invented: its grid, each run's settings, and rows of every stage it asks for.

Nothing here names an experiment or a report. A stage's rows come from the function `STAGE_rows` below.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import invented
import invented_perplexity
import numpy as np
from omegaconf import OmegaConf

from conf.groups import find
from conf.settings import text
from suite.request.compose import Composer

GROUPS = ("model", "size", "task", "data")
SCORE = {"language": "nll", "in_context_regression": "squared_error"}
"""What a task is scored by; by its accuracy if nothing is said."""
MANY, FEW = 50, 12
"""In a grid of more runs the first entries of every task and size are enough, with the ends of their axes.

FEW is enough for a page's words.
"""


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings as the store has them: dotted names, lists as text."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", f"[{','.join(map(str, value))}]" if isinstance(value, list) else value


@functools.cache
def configurations(experiment: str, most: int = MANY) -> tuple[Mapping[str, Any], ...]:
    """The configuration of every run of an experiment's grid but for the seeds, of which there are two."""
    grid = OmegaConf.to_container(OmegaConf.load(find("experiment", experiment)).experiment.grid)
    cells = cells_of(grid, GROUPS, 3)
    if len(cells) > most:
        places = [(entry.get("task"), entry.get("size")) for entry in grid]
        first = [entry for i, entry in enumerate(grid) if places[:i].count(places[i]) < 2]
        cells = cells_of(first, ("task", "size"), 2)
    cells = [[f"experiment={experiment}", *cell] for cell in cells]
    composer = Composer(cells)
    return tuple(composer.compose(cell).written for cell in cells)


def cells_of(grid: list[Mapping[str, Any]], whole: tuple[str, ...], most: int) -> list[tuple[str, ...]]:
    """Every combination of a grid but for the seeds; of axes that are not `whole` the ends, and `most` values at the most."""
    cells = []
    for entry in grid:
        axes = {key: value if isinstance(value, list) else [value] for key, value in entry.items() if key != "seed"}
        axes = {k: v if k in whole else [*v[: most - 1], *v[most - 1 :][-1:]] for k, v in axes.items()}
        settings = [[f"{key}={text(value)}" for value in values] for key, values in axes.items()]
        cells += itertools.product(*settings)
    return cells


def invent(store, experiment: str, *, seeds: tuple[int, ...] = (0, 1), skipped: int = 0, most: int = MANY) -> None:
    """Writes the runs of an experiment and the request for them; the first `skipped` are asked for and never begun."""
    for i, (config, seed) in enumerate(itertools.product(configurations(experiment, most), seeds)):
        model, task = config["model"], config["task"]
        settings = dict(flat({group: config[group] for group in ("model", "size", "task", "train")}))
        settings["protocol"] = config["protocol"]["name"]
        # in the place of the sizes that it sets
        settings["match"] = config["match"]["by"]
        names = {"label": model["label"], "size": config["size"]["name"], "seed": seed, "settings": settings}
        names["group"] = hashlib.sha256(repr(sorted(settings.items(), key=str)).encode()).hexdigest()[:8]
        if i < skipped:
            store.ask(model["name"], task["name"], **names)
            continue
        facts = {"seq_len": task["seq_len"], "train_steps": config["train"].get("steps"), "lr": config["train"].get("lr")}
        facts |= {"head_dim": config["size"]["head_dim"], "batch_size": config["train"].get("batch_size")}
        facts["train_tokens"] = facts["train_steps"] * facts["batch_size"] * facts["seq_len"]
        facts |= {"state_bytes": 64 * len(model["name"]) * config["size"]["head_dim"]}
        # An evaluation of which nobody has invented rows is left out.
        invented = {name: globals().get(f"{name}_rows") for name in ("train", *config["eval"]["stages"])}
        stages = {name: rows(store, config, seed) for name, rows in invented.items() if rows}
        curve = [(step, 3.0 + level(config, seed) - step / 50) for step in range(1, 101)]
        stages = {name: rows for name, rows in stages.items() if rows}
        store.run(model["name"], task["name"], stages=stages, facts=facts, curve=curve, **names)
    store.request(experiment)


def level(config: Mapping[str, Any], seed: int) -> float:
    """How good a run is, from 0 to 1: decided by its settings alone, and a little by its seed."""
    digest = hashlib.sha256(repr((config["model"], config["size"], config["train"])).encode()).digest()
    return 0.9 * digest[0] / 255 + 0.01 * seed


def solves(config: Mapping[str, Any]) -> bool:
    return any("solver" in config["model"][name] for name in config["model"]["pattern"])


def score_of(config: Mapping[str, Any]) -> str:
    return SCORE.get(config["task"]["name"], "accuracy")


def train_rows(store, config, seed):
    value = 1 + level(config, seed)
    rows = [store.row("tokens_per_second", 1000 * value, "train"), store.row("train_seconds", 100 / value, "train")]
    if score_of(config) == "nll":
        floors = {"unigram_bits_per_byte": 4.5, "trigram_bits_per_byte": 2.9}
        values = {"nll": value, "bits_per_byte": 1.5 * value, **floors}
        return rows + [store.row(metric, each, "validation") for metric, each in values.items()]
    macro = [store.row("accuracy_macro", value / 2, "validation")] if is_answered(config) else []
    return [*rows, store.row(score_of(config), value / 2, "validation"), *macro]


def cost_rows(store, config, seed):
    return [store.row("measured_flops_per_token", 1e5 * (1 + level(config, 0)), "validation")]


def position_rows(store, config, seed):
    if score_of(config) != "nll":
        return []
    own = np.random.default_rng(seed).uniform(1, 2, invented.DOCUMENTS) + level(config, seed)
    noise = np.random.default_rng(round(1e6 * level(config, seed))).normal(0, 0.1, invented.DOCUMENTS)
    groups = {"groups": [i // 2 for i in range(invented.DOCUMENTS)]}
    return [
        store.row("nll", 0.0, "validation", examples=list(own + noise), position_low=low, position_high=high) | groups
        for low, high in invented.BANDS
    ]


def test_rows(store, config, seed):
    task, value = config["task"], level(config, seed)
    if score_of(config) == "squared_error":
        errors = {"squared_error": 3 + value, "ridge_error": 2.0, "bayes_error": 2 - task["drift"]}
        length = task["seq_len"]
        rows = [store.row(m, each / (t + 1), "test", position=t) for m, each in errors.items() for t in range(length)]
        for low, high in ((length // 4, length // 2), (length - length // 4, length)):
            rows += [store.row(metric, each, "test", position_low=low, position_high=high) for metric, each in errors.items()]
        return rows
    rows = [store.row("accuracy", value, "test"), store.row("nll", 1 + value, "test"), store.row("chance", 0.25, "test")]
    for pairs in task.get("num_pairs") or [pairs for _, pairs, _ in task.get("test_segments", ())]:
        rows += [store.row("accuracy", value / pairs, "test", num_pairs=pairs)]
        rows += [store.row("chance", 1 / pairs, "test", num_pairs=pairs)]
    length, place = task.get("test_seq_len", 0), "length" if "brackets" in task else "position"
    for t in range(0, length, max(1, length // 256)):
        rows.append(store.row("accuracy", value if t > task["seq_len"] else 1.0, "test", **{place: t}))
    if is_answered(config):
        rows.append(store.row("accuracy_macro", value, "test"))
    if task["name"] == "regbench":
        rows += [store.row(f"ngram{order}_accuracy", 0.4 + order / 8, "test") for order in (1, 2, 3, 4)]
        rows.append(store.row("next_token_accuracy", value / 2, "test"))
    return rows if score_of(config) == "accuracy" else []


def is_answered(config: Mapping[str, Any]) -> bool:
    """Whether the task has a mean over targets too, as those of one right answer a question have."""
    return config["task"]["name"].startswith(("mad_", "modular_arithmetic", "regbench"))


def lm_eval_rows(store, config, seed):
    if score_of(config) != "nll":
        return []
    rows = []
    for name in ("offline_key_value", "offline_last_word"):
        right = np.random.default_rng(seed).permutation(40) < 40 * level(config, seed)
        rows.append(store.row("accuracy", right.mean(), "test", examples=list(map(float, right)), benchmark=name, shots=0))
        rows.append(store.row("chance", 0.1, "test", benchmark=name, shots=0))
    return rows


def solver_rows(store, config, seed):
    if not solves(config):
        return []
    rows = invented.solver_rows(store, seed=seed, metric=score_of(config), offset=level(config, seed))
    # The model's own solver has one setting.
    own = {**rows[0]["slice"]}
    return [row for row in rows if row["slice"].items() >= own.items()] if config["eval"]["solvers"] == [{}] else rows


def decode_rows(store, config, seed):
    return invented.decode_rows(store, seed=seed) if solves(config) else []


def internals_rows(store, config, seed):
    if not solves(config):
        return []
    rows = invented.internals_rows(store, seed=seed)
    for row in [row for row in rows if row["metric"] == "indefinite"]:
        rows.append(row | {"metric": "smallest_eigenvalue", "value": 1.0 + seed})
    return rows


def length_rows(store, config, seed):
    rows = invented.length_rows(store, seed=seed)
    return rows if solves(config) else [row for row in rows if row["metric"] in ("nll", "perplexity")]


def perplexity_rows(store, config, seed):
    asked, rows = config["eval"], []
    state = None if config["model"]["name"] == "transformer" else 2**18
    for name, reading, context in itertools.product(asked["texts"], asked["readings"], asked["contexts"]):
        if context or reading == "carried":
            where = {"text": name, "reading": reading, "context": context}
            lengths = [4 * length for length in invented_perplexity.LENGTHS]
            offset = level(config, seed)
            rows += invented_perplexity.perplexity_rows(store, seed=seed, offset=offset, state=state, lengths=lengths, **where)
    return rows


def repeats_rows(store, config, seed):
    mixer = config["model"]["mixer"]
    return invented.repeats_rows(store, floor=mixer["regularizer_floor"], capped=mixer["forget_cap"] is not None)


def efficiency_rows(store, config, seed):
    return invented.efficiency_rows(store, slow=1 + level(config, seed))


def least_squares_rows(store, config, seed):
    if not solves(config):
        return []
    task = config["task"]
    length = task["seq_len"]
    rows = []
    for i, name in enumerate(("operator", "forgetting", "floored")):
        error = 2 + 0.2 * i + 0.1 * seed
        rows += [store.row(f"{name}_error", error / (t + 1), "test", position=t) for t in range(length)]
        rows.append(store.row(f"{name}_error", error, "test", position_low=length - length // 4, position_high=length))
        rows.append(store.row(f"{name}_decay", 0.9 + 0.01 * i, "validation"))
    return rows
