"""What `generate` does: a trained language model goes on with a text."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch

from conf.settings import LARGEST, Count, Natural, RequestError, Settings, fields, unknown, within
from models.backbone import Backbone
from models.backbone.generation import generate, narrow
from models.mesa.layers import mesa_layers, mesa_replaced
from suite.machine.devices import select_device
from suite.plan import Run, check_compute
from suite.request.compose import compose_one
from suite.request.overrides import parse
from suite.saved import model_of, saved_run
from tasks.language.vocabulary import Vocabulary
from tasks.tokenizer import Tokenizer

OF_A_CONFIGURATION = ("seed", "backend", "paths", "compute")


class Generate(Settings, kw_only=True):
    """What `generate` takes beside keys of every configuration. solver_steps: of the Mesa layers."""

    run: str
    prompt: str
    tokens: Count
    temperature: Annotated[float, within(0, LARGEST)]
    top_k: Count | None
    solver_steps: Natural | None


# What is asked when nothing is said.
UNSAID: dict[str, Any] = {"prompt": "", "tokens": 100, "temperature": 1.0, "top_k": None, "solver_steps": None}


def generate_text(arguments: Sequence[str]) -> str:
    """The prompt and what follows it, up to the end of the document. Raises RequestError."""
    asked, overrides = _parsed(arguments)
    here = compose_one(overrides)
    check_compute(here.config, here.compute)
    run = saved_run(Path(here.paths.results), asked.run, here)
    device = select_device(here.compute.device)
    try:
        torch.set_num_threads(here.compute.threads)
        # What is asked of no language model is refused before its weights are read.
        tokenizer = tokenizer_of(run)
        model = as_decoded(run, model_of(run, Path(here.paths.results), device, here.config.backend))
        return continue_text(run, model, tokenizer, asked, seed=here.config.seed)
    except ValueError as error:
        raise RequestError(str(error)) from error


def as_decoded(run: Run, model: Backbone) -> Backbone:
    """The model itself as it generates: what was trained under bfloat16 autocast keeps its weights so."""
    if run.config.train.autocast == "bfloat16":
        narrow(model, torch.bfloat16)
    return model


def continue_text(run: Run, model: Backbone, tokenizer: Tokenizer, asked: Generate, *, seed: int) -> str:
    """The prompt and what follows it. Raises ValueError for what the model can't do. seed: draws the samples."""
    # A document begins with BOS, as in training.
    ids = [tokenizer.bos, *tokenizer.encode(asked.prompt)]
    if asked.solver_steps is not None and not mesa_layers(model):
        raise RequestError(f"solver_steps={asked.solver_steps}: {run.config.model.name} solves nothing")
    solver = {} if asked.solver_steps is None else {"max_steps": asked.solver_steps}
    with mesa_replaced(model, {"solver": solver}):
        prompt = torch.tensor([ids], device=next(model.parameters()).device)
        sampling = {"temperature": asked.temperature, "top_k": asked.top_k, "seed": seed}
        (following,) = generate(model, prompt, num_tokens=asked.tokens, **sampling).tolist()
    ends = {tokenizer.bos, *getattr(model, "ends", ())}
    end = next((i for i, token in enumerate(following) if token in ends), len(following))
    return tokenizer.decode([*ids, *following[:end]])


def _parsed(arguments: Sequence[str]) -> tuple[Generate, list[str]]:
    """What is asked, and the overrides of the configuration."""
    asked, overrides = dict(UNSAID), []
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if not separator:
            meant = "run" if re.fullmatch("[0-9a-f]{1,12}", argument) else "prompt"
            raise RequestError(f"{argument!r} is not of the form key=value; did you mean {meant}={shlex.quote(argument)}?")
        if [each.partition("=")[0] for each in arguments].count(key) > 1:
            raise RequestError(f"{key} is given twice, permitted is once")
        if key in ("run", "prompt"):
            asked[key] = value
        elif key in UNSAID:
            # As in every request: 50, 1e-3, null.
            typed = parse([argument])[0]
            asked[key] = value if typed.is_sweep_override() else typed.value()
        elif key.partition(".")[0] in OF_A_CONFIGURATION:
            overrides.append(argument)
        else:
            raise unknown("key", key, (*fields(Generate), *OF_A_CONFIGURATION))
    if "run" not in asked:
        raise RequestError("generate takes run=ID")
    return Generate.read(asked), overrides


def tokenizer_of(run: Run) -> Tokenizer:
    """Raises RequestError for a run that has read no text, or whose tokenizer is not here."""
    data = getattr(run.config.task, "data", None)
    if data is None:
        raise RequestError(f"run {run.run_id} was trained on {run.config.task.name}; permitted are runs of language")
    try:
        tokenizer = Vocabulary.of(data).tokenizer
    except ValueError as error:
        raise RequestError(str(error)) from error
    if tokenizer is None:
        raise RequestError(f"run {run.run_id} was trained on ids; data.tokenizer=FILE says which tokenizer made them")
    if tokenizer.vocab_size != run.interface.vocab_size:
        raise RequestError(f"run {run.run_id}: its tokenizer has {run.interface.vocab_size} ids, the file has another number")
    return tokenizer
