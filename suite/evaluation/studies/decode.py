"""A trained model stepped through text token by token, with another way of solving: error, steps and time.

The paper's first open question (MesaNet, arXiv 2506.05233, Sec. 6): starting at the solution of the token before, and the
recursion of Sherman and Morrison.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from conf import settings
from models.mesa.layers import mesa_replaced
from models.mesa.mixer import Mesa
from models.mixer import State
from models.ops.solvers import SolverSettings
from suite.compute.scoring import score_features
from suite.evaluation.settings import Asked
from suite.evaluation.studies.exact import read_out, readout_error
from suite.evaluation.studies.layers import joined, observed, traced
from suite.evaluation.studies.rows import mean_row, placed, places, row, score_rows
from suite.evaluation.studies.subject import Sample, Subject
from suite.evaluation.studies.timing import TIMED_TOKENS, compared_rows
from tasks.task import Batch, Encoded, Measurement, Scored

# Tokens that are timed, after the first half of a sequence: enough that a refresh every 64 of them falls among them.
TIMED_STEPS = 64
# What Mesa's settings say of single tokens, beside the solver.
OF_DECODING = ("decode", "refresh")


class Decoder(SolverSettings, kw_only=True):
    """How single tokens are solved: a solver, and what Mesa's settings say of decoding."""

    decode: Literal["solver", "sherman_morrison"]
    refresh: settings.Count | None


DecoderChange = settings.partial("DecoderChange", Decoder, __name__)


class Settings(settings.Settings, kw_only=True):
    """decoders: settings laid over the model's own solver and decoder, a stage an entry."""

    decoders: tuple[DecoderChange, ...]


def planned(asked: Asked) -> list[dict[str, Any]]:
    """One stage an entry of eval.decoders; Sherman-Morrison's are left out for a model with signed gates, which has none.

    Raises RequestError for an entry that makes no solver or decoder.
    """
    mixer = asked.config.model.first(Mesa.Settings)
    if mixer is None or isinstance(asked.task.interface, Encoded):
        # What an AutoEncoder answers after a part of a sequence has no meaning.
        return []
    own = {**mixer.solver.plain(), **{name: getattr(mixer, name) for name in OF_DECODING}}
    decoders = [Decoder.read({**own, **entry.plain()}, "eval.decoders").plain() for entry in asked.own.decoders]
    if mixer.signed_decay:
        decoders = [decoder for decoder in decoders if decoder["decode"] != "sherman_morrison"]
    for decoder in decoders:
        type(mixer).read({**mixer.plain(), **_of_a_mixer(decoder)}, "eval.decoders")
    fresh = {**own, "decode": "solver", "refresh": None, "initial": "diagonal"}
    return [{"decoder": decoder, "fresh": fresh} for decoder in decoders]


def _of_a_mixer(decoder: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a decoder as a Mesa layer has them, with a solver's by themselves."""
    own = {key: decoder[key] for key in OF_DECODING}
    return {**own, "solver": {key: value for key, value in decoder.items() if key not in own}}


@torch.no_grad()
def measure(subject: Subject, asked: Mapping[str, Any]) -> list[Measurement]:
    """The task's scores, each next token given; and overall and by range of positions readout_error, its mean and
    readout_error_worst, the largest, and the mean of solver_steps, 0 for Sherman and Morrison.

    relative_time: of a step, to one with `fresh`, the model's own solver from a diagonal start.
    """
    decoder, sample = asked["decoder"], subject.sample(asked["tokens"])
    scored, errors, steps = [], [], []
    with mesa_replaced(subject.model, _of_a_mixer(decoder)):
        for batch in sample.batches():
            each, seen = _stepped(subject, batch)
            scored.append(each)
            errors.append(torch.stack([readout_error(layer) for layer in seen.values()], dim=-1))
            steps.append(torch.stack([layer["steps"] for layer in seen.values()], dim=-1))
    error, step = torch.cat(errors), torch.cat(steps)
    if decoder["decode"] == "sherman_morrison":
        step = torch.zeros_like(step)
    rows = score_rows(sample, scored)
    for place, where in places(sample.task.seq_len):
        rows.append(mean_row("readout_error", error[:, where], sample.split, place))
        rows.append(row("readout_error_worst", error[:, where], torch.max, sample.split, place))
        rows.append(mean_row("solver_steps", step[:, where], sample.split, place))
    rows += _times(subject, sample, asked)
    # Another solver than the model's own, at the same steps and tolerance, is another decoder.
    solver = "solver" if decoder["name"] == asked["fresh"]["name"] else decoder["name"]
    name = decoder["decode"] if decoder["decode"] != "solver" else f"{solver}, {decoder['initial']} start"
    stopping = {key: decoder[key] for key in ("max_steps", "tolerance")}
    return placed(rows, {"decode": name, "refresh": decoder["refresh"] or 0, **stopping}, sample.task)


def _stepped(subject: Subject, batch: Batch) -> tuple[Scored, dict[int, dict[str, Tensor]]]:
    """Scores, and what every layer read and read out; a reset of the state is why `step` itself would not do."""
    there, model = subject.on_device(batch), subject.model
    state, features = model.init_state(len(there.tokens)), []
    with observed(model, _observe) as seen:
        for t in range(there.tokens.shape[1]):
            token = slice(t, t + 1)
            starts = None if there.starts is None else there.starts[:, token]
            x, state = model.features(there.tokens[:, token], state, starts=starts)
            features.append(x)
    return score_features(model, torch.cat(features, dim=1), batch), joined(seen, 1)


def _observe(mixer: Mesa, x: Tensor, state: State | None, starts: Tensor | None) -> dict[str, Tensor]:
    return {**read_out(mixer, x, state, starts), "steps": traced(mixer, x, state, starts)["steps"]}


def _times(subject: Subject, sample: Sample, asked: Mapping[str, Any]) -> list[Measurement]:
    model, count = subject.model, min(sample.count, max(1, TIMED_TOKENS // sample.task.seq_len))
    tokens = subject.on_device(sample.task.batch(sample.split, range(count))).tokens
    half = tokens.shape[1] // 2
    steps = min(TIMED_STEPS, tokens.shape[1] - half)
    begun = {}
    for name in ("decoder", "fresh"):
        with mesa_replaced(model, _of_a_mixer(asked[name])):
            _, begun[name] = model.features(tokens[:, :half])

    def run(name: str) -> None:
        with mesa_replaced(model, _of_a_mixer(asked[name])):
            state = begun[name]
            for t in range(half, half + steps):
                _, state = model.step(tokens[:, t], state)

    ways = (partial(run, name) for name in ("decoder", "fresh"))
    return compared_rows(*ways, subject.device, split=sample.split, tokens=count * steps)
