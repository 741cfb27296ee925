"""What `import` does: a folder of a model becomes a run of the store, which can be evaluated and trained on."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor

from conf.paths import UserPath
from conf.settings import Refusal, RequestError, Settings
from models.backbone import Backbone
from suite.canonical import digest
from suite.compute.interface import unfilled_backbone
from suite.exchange import folder, gemma
from suite.exchange.outward import FORMAT, NATIVE, parsed
from suite.plan import Run, plan
from suite.request.compose import compose_one
from suite.request.identity import flat_settings, group_id, identity, run_id
from suite.running.execute import as_yaml
from suite.running.requests import results_folder
from suite.saved import described
from suite.stage import TRAINING
from suite.store.checkpoint import save_final, weights_digest
from suite.store.foreign import parse_yaml, reason_of
from suite.store.lock import Locked
from suite.store.run_directory import READING, RunDirectory
from suite.store.status import Status
from tasks.task import Measurement

CPU = torch.device("cpu")
OWN = {
    "path": "FOLDER",
    "from": "native|hf  (native where nothing is said; with hf also the task and its data, which are keys of run)",
}


class Import(Settings, kw_only=True):
    """path: the folder. source: whose it is."""

    path: UserPath
    source: Literal["native", "hf", "fla"]


def import_run(arguments: Sequence[str]) -> str:
    """Makes the run and says its name. Raises RequestError."""
    typed, overrides = parsed(arguments, ("path", "from"))
    typed.setdefault("from", NATIVE)
    if "path" not in typed:
        raise RequestError("import takes path=FOLDER")
    asked = Import.read({"path": typed["path"], "source": typed["from"]})
    path = Path(asked.path)
    if asked.source == "fla":
        raise Refusal("from", "fla", "hf and native: no model of fla has a soft cap on its logits, and every model here has one")
    if asked.source == "hf":
        run, tensors, rows, code = _of_hf(path, overrides)
    else:
        run, tensors, rows, code = _of_this_suite(path, overrides)
    model = _filled(run, tensors, path)
    results = results_folder(run.paths.results)
    _keep(run, model, rows, code, results, asked.source)
    return f"run {run.run_id} of {results} has the model of {path}"


def _of_this_suite(
    path: Path, overrides: Sequence[str]
) -> tuple[Run, Mapping[str, Tensor], Sequence[Measurement], Mapping[str, Any]]:
    here = compose_one(overrides)
    held = folder.read_config(path)
    written_digest = held.pop("digest", None)
    if held.get("format") != "linear-rnn-suite":
        raise RequestError(f"path={path}: config.json is no export of this suite; from=hf reads what transformers wrote")
    if held.get("version") != FORMAT:
        raise RequestError(f"path={path}: config.json is of version {held.get('version')!r}, permitted is {FORMAT}")
    try:
        written = parse_yaml(as_yaml(held["config"]).encode())
        run = described(held["run_id"], held["facts"], written, here)
        rows = [_measurement(row) for row in held["rows"]]
        code = {
            "states": [str(state) for state in held["code"]["states"]],
            **{k: v for k, v in held["code"].items() if k != "states"},
        }
        # Folders of earlier versions carry no digests.
        if written_digest not in (None, digest(held, 16)):
            raise ValueError("its digest is another one")
    except RequestError:
        raise
    except (*READING, msgspec.ValidationError) as error:
        raise RequestError(f"path={path}: config.json is not what was exported: {reason_of(error)}") from error
    tensors = folder.read_weights(path)
    if held.get("weights") not in (None, weights_digest(tensors)):
        raise RequestError(f"path={path}: model.safetensors is not what was exported: its digest is another one")
    return run, tensors, rows, code


def _measurement(row: Mapping[str, Any]) -> Measurement:
    value = row.get("value")
    return msgspec.convert({**row, "value": math.nan if value is None else value}, Measurement)


def _of_hf(path: Path, overrides: Sequence[str]) -> tuple[Run, Mapping[str, Tensor], Sequence[Measurement], Mapping[str, Any]]:
    """A run of no steps that begins with the folder's weights, on the task that is typed."""
    held = folder.read_config(path)
    choices = gemma.choices_of(held)
    for typed in overrides:
        key = typed.partition("=")[0]
        if key.split(".")[0] in ("model", "size", "train", "experiment", "match"):
            raise RequestError(
                f"{typed}: {key} is the folder's to say, permitted are keys of task, data, paths, compute and seed"
            )
    planned = plan([*overrides, *choices, "train=none", "train.steps=1", "eval=none"])
    if len(planned) != 1:
        raise RequestError(f"{len(planned)} runs are asked for, permitted is one")
    (run,) = planned
    if getattr(run.interface, "vocab_size", None) != held.get("vocab_size"):
        own = getattr(run.interface, "vocab_size", None)
        raise RequestError(
            f"config.json has vocab_size={held.get('vocab_size')}, and the task {own}: data.tokenizer says whose ids they are"
        )
    tensors = gemma.from_gemma(folder.read_weights(path), run.config.size.num_blocks)
    train = run.config.train.replace({"steps": 0, "start_digest": weights_digest(tensors)})
    config = dataclasses.replace(run.config, train=train)
    named = identity(config, data_fingerprint=run.data_fingerprint)
    written = {**run.written, "train": {**run.written["train"], **train.plain()}}
    run = dataclasses.replace(run, config=config, run_id=run_id(named), group_id=group_id(named), written=written)
    return run, tensors, [], {"states": ["unknown"]}


def _filled(run: Run, tensors: Mapping[str, Tensor], path: Path) -> Backbone:
    model = unfilled_backbone(run.interface, run.config.model, run.config.size, backend="torch", device=CPU)
    try:
        model.load_state_dict(dict(tensors))
    except RuntimeError as error:
        told = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise RequestError(f"path={path}: model.safetensors is not of this model: {told[-1]}") from error
    return model.eval()


def _keep(run: Run, model: Backbone, rows: Sequence[Measurement], code: Mapping[str, Any], results: Path, source: str) -> None:
    directory = RunDirectory(results, run.run_id)
    if os.path.lexists(directory.stage_file(TRAINING)):
        raise RequestError(f"run {run.run_id} is in {results} already")
    names = {"run_id": run.run_id, "group_id": run.group_id, "facts": run.facts, "settings": flat_settings(run.config)}
    try:
        directory.make()
        with directory.lock:
            directory.begin(names, as_yaml(run.written).encode(), code, {"device": "cpu", "imported_from": source})
            save_final(directory, model)
            directory.write_stage(TRAINING, rows, attempt="import")
            directory.write_status(Status("done", attempt="import"))
    except Locked as error:
        raise RequestError(f"run {run.run_id}: {error}") from error
