"""What `export` does: the trained model of a run as a folder that others, or another store of this suite, can read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from conf.paths import UserPath
from conf.settings import Refusal, RequestError, Settings, unknown
from models.build import pretrained
from suite.exchange import folder, gemma
from suite.plan import Run
from suite.request.compose import compose_one
from suite.request.identity import flat_settings
from suite.request.places import PLACES
from suite.saved import model_of, saved_run
from suite.stage import TRAINING
from suite.store.checkpoint import weights_digest
from suite.store.foreign import parse_yaml, sealed
from suite.store.run_directory import RunDirectory
from tasks.files import read_regular
from tasks.language.tokenizer import MAX_FILE_BYTES, ByteTokenizer
from tasks.language.vocabulary import Vocabulary
from tasks.task import Encoded, Tokens

NATIVE, FORMAT = "native", 1
OWN = {
    "run": "ID  (the beginning is enough)",
    "to": "native|hf  (this suite's own, with all that a store keeps of the run, or transformers')",
    "path": "FOLDER  (is made: config.json, model.safetensors, tokenizer.json)",
}


class Export(Settings, kw_only=True):
    """run: the beginning of its id. to: whose folder it is to be. path: the folder, which is made."""

    run: str
    to: Literal["native", "hf", "fla"]
    path: UserPath


def parsed(arguments: Sequence[str], keys: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The verb's own keys, and the overrides of the configuration. Raises RequestError."""
    asked: dict[str, Any] = {}
    overrides = []
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if not separator:
            raise RequestError(f"{argument!r} is not of the form key=value")
        if key in keys:
            if key in asked:
                raise RequestError(f"{key} is given twice, permitted is once")
            asked[key] = value
        else:
            overrides.append(argument)
    return asked, overrides


def export_run(arguments: Sequence[str]) -> str:
    """Writes the folder and says what it is. Raises RequestError."""
    typed, overrides = parsed(arguments, ("run", "to", "path"))
    for override in overrides:
        key = override.partition("=")[0]
        if not key.startswith("paths."):
            raise unknown("key", key, ["run", "to", "path", *(f"paths.{name}" for name in PLACES)])
    asked = Export.read(typed)
    here = compose_one(overrides)
    results, path = Path(here.paths.results), Path(asked.path)
    run = saved_run(results, asked.run, here)
    if pretrained(run.config.model) is not None:
        raise RequestError(f"run {run.run_id} has the model of {run.written['model']['path']}, which is such a folder already")
    if asked.to == "fla":
        # What is refused needs no weights.
        raise Refusal("to", "fla", f"hf and {NATIVE}: no model of fla has size.logit_soft_cap={run.config.size.logit_soft_cap:g}")
    is_hf = asked.to == "hf"
    config = _hf_config(run) if is_hf else _native_config(run, results)
    tensors = model_of(run, results, torch.device("cpu"), "torch").state_dict()
    if is_hf:
        tensors = gemma.to_gemma(tensors)
    else:
        config = sealed({**config, "weights": weights_digest(tensors)})
    folder.write(path, config, tensors, _tokenizer(run))
    return f"run {run.run_id} is in {path}: {', '.join(sorted(file.name for file in path.iterdir()))}"


def _hf_config(run: Run) -> dict[str, Any]:
    interface = run.interface
    if not isinstance(interface, Tokens) or isinstance(interface, Encoded):
        raise Refusal("task", run.config.task.name, "tasks of ids with to=hf", fault="has no counterpart there")
    vocabulary = _vocabulary(run)
    return gemma.config_of(run.config, vocab_size=interface.vocab_size, bos=None if vocabulary is None else vocabulary.bos)


def _native_config(run: Run, results: Path) -> dict[str, Any]:
    """All that a store keeps of the run beside its weights, but for evaluations."""
    directory = RunDirectory(results, run.run_id)
    whole, written = directory.read()
    trained = directory.read_stage(TRAINING)
    assert trained is not None, "a saved run is trained"
    return {
        "format": "linear-rnn-suite",
        "version": FORMAT,
        "run_id": run.run_id,
        "facts": whole["facts"],
        "settings": flat_settings(run.config),
        "code": whole.get("code", {"states": ["unknown"]}),
        "config": parse_yaml(written),
        "rows": trained["rows"],
    }


def _vocabulary(run: Run) -> Vocabulary | None:
    """What the ids of a run mean; None for a task without text. Raises RequestError for a tokenizer that is not here."""
    data = getattr(run.config.task, "data", None)
    try:
        return None if data is None else Vocabulary.of(data)
    except ValueError as error:
        raise RequestError(str(error)) from error


def _tokenizer(run: Run) -> bytes | None:
    """The tokenizer.json by which the ids have a meaning; None where they have none."""
    vocabulary = _vocabulary(run)
    if vocabulary is None or vocabulary.tokenizer is None:
        return None
    if isinstance(vocabulary.tokenizer, ByteTokenizer):
        return of_bytes()
    return read_regular(Path(vocabulary.tokenizer.name).expanduser(), limit=MAX_FILE_BYTES, follow=True)


def of_bytes() -> bytes:
    """The bytes of UTF-8 as a tokenizer.json: ids 0 to 255, and <|endoftext|>, 256, between documents."""
    letters = {letter: byte for byte, letter in _letters().items()}
    backend = Backend(models.BPE(letters, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    assert backend.token_to_id("<|endoftext|>") == ByteTokenizer.bos, "BOS is the id behind the bytes"
    return json.dumps(json.loads(backend.to_str()), ensure_ascii=False).encode()


def _letters() -> Mapping[int, str]:
    """The letter that stands for each byte in byte-level tokenizers: itself where it is seen, else one from 256 up."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {byte: chr(256 + i) for i, byte in enumerate(others)}
