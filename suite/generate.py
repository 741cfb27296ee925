"""What `generate` does: a trained language model goes on with a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from models.generation import generate, narrow
from models.mesa_layers import mesa_layers, solver_replaced
from suite.machine.devices import select_device
from suite.plan import Run
from suite.ranges import check_values
from suite.request.overrides import RequestError, compose_config, parse, unknown
from suite.saved import load_model, saved_run
from suite.values import between, fit
from tasks.tokenizer import Tokenizer, load_tokenizer

# What is asked when nothing is said; the other keys are those of every configuration. solver_steps: of the Mesa layers.
ASKED: dict[str, Any] = {"run": None, "prompt": "", "tokens": 100, "temperature": 1.0, "top_k": None, "solver_steps": None}
NUMBERS = {
    "tokens": between(int, 1, 2**31 - 1),
    "temperature": between(float, 0, 1e38),
    "top_k": between(int, 1, 2**31 - 1) | None,
    "solver_steps": between(int, 0, 2**31 - 1) | None,
}
OF_A_CONFIGURATION = ("seed", "backend", "paths", "compute")


def generate_text(arguments: Sequence[str]) -> str:
    """The prompt and what follows it, up to the end of the document. Raises RequestError."""
    asked, overrides = _parsed(arguments)
    config = compose_config(overrides)
    check_values(config)
    run = saved_run(Path(config.paths.results), asked["run"])
    tokenizer, device = _tokenizer(run), select_device(config.compute.device)
    # A document begins with BOS, as in training.
    ids = [tokenizer.bos, *tokenizer.encode(asked["prompt"])]
    sampling = {key: asked[key] for key in ("temperature", "top_k")}
    try:
        model = load_model(run.run_id, config.paths.results, device.type, config.backend)
        if run.config["train"]["autocast"] == "bfloat16":
            narrow(model, torch.bfloat16)
        if asked["solver_steps"] is not None and not mesa_layers(model):
            raise RequestError(f"solver_steps={asked['solver_steps']}: {run.config['model']['name']} solves nothing")
        solver = {} if asked["solver_steps"] is None else {"max_steps": asked["solver_steps"]}
        with solver_replaced(model, solver):
            prompt = torch.tensor([ids], device=device)
            (following,) = generate(model, prompt, num_tokens=asked["tokens"], **sampling, seed=config.seed).tolist()
    except ValueError as error:
        raise RequestError(str(error)) from error
    end = following.index(tokenizer.bos) if tokenizer.bos in following else len(following)
    return tokenizer.decode([*ids, *following[:end]])


def _parsed(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The values of ASKED, and the overrides of the configuration."""
    asked, overrides = dict(ASKED), []
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if not separator:
            raise RequestError(f"{argument!r} is not of the form key=value")
        if [each.partition("=")[0] for each in arguments].count(key) > 1:
            raise RequestError(f"{key} is given twice, permitted is once")
        if key in ("run", "prompt"):
            asked[key] = value
        elif key in ASKED:
            # As in every request: 50, 1e-3, null.
            typed = parse([argument])[0]
            asked[key] = fit(key, value if typed.is_sweep_override() else typed.value(), NUMBERS[key])
        elif key.partition(".")[0] in OF_A_CONFIGURATION:
            overrides.append(argument)
        else:
            raise unknown("key", key, (*ASKED, *OF_A_CONFIGURATION))
    if asked["run"] is None:
        raise RequestError("generate takes run=ID")
    return asked, overrides


def _tokenizer(run: Run) -> Tokenizer:
    """Raises RequestError for a run that has read no text, or whose tokenizer is not here."""
    if "data" not in run.config["task"]:
        raise RequestError(f"run {run.run_id} was trained on {run.config['task']['name']}; permitted are runs of language")
    try:
        tokenizer = load_tokenizer(run.config["task"]["data"]["tokenizer"])
    except ValueError as error:
        raise RequestError(str(error)) from error
    if tokenizer.vocab_size != run.interface.vocab_size:
        raise RequestError(f"run {run.run_id}: its tokenizer has {run.interface.vocab_size} ids, the file has another number")
    return tokenizer
