"""Trained models as folders and back, and models of transformers among the runs of a store."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import suite
from conf.settings import RequestError
from models.hf import library
from suite.cli import main
from suite.exchange.outward import of_bytes
from suite.plan import plan
from suite.results import load_results, load_runs
from tasks.language.tokenizer import FileTokenizer

SIZE = ("size.d_model=32", "size.num_blocks=2", "size.mlp_dim=48")
TRAINED = (*SIZE, "train.steps=6", "train.warmup_steps=1", "train.lr=1e-2", "eval=none", "compute.log_seconds=0")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, its tokenizer, and a store with one trained run of each model that is asked for."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "text.txt").write_text("\n".join(f"the cat {i} sat on the mat" for i in range(2500)))
    return folder


def data(home: Path, **changes: object) -> list[str]:
    keys = {"data": "text", "data.path": home / "text.txt", "task.seq_len": 32, "task.max_validation_examples": 8, **changes}
    return [f"{key}={value}" for key, value in {**keys, "paths.cache": home / "cache"}.items()]


@pytest.fixture(scope="module")
def trained(home: Path) -> Callable[..., str]:
    """Trains a run with these keys once, in the store `results`, and gives its id."""
    made: dict[tuple[str, ...], str] = {}

    def train(*keys: str) -> str:
        if keys not in made:
            runs = suite.run(*keys, *data(home), *TRAINED, f"paths.results={home / 'results'}")
            (made[keys],) = runs["run_id"]
        return made[keys]

    return train


def logits(run: str, store: Path, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        answers, _ = suite.load_model(run, store).backbone(tokens)
    return answers


def tokens(length: int = 30) -> torch.Tensor:
    return torch.randint(257, (2, length), generator=torch.Generator().manual_seed(0))


def test_a_run_that_is_exported_and_imported_is_the_same_run(home, trained, tmp_path, capsys):
    run = trained("model=gated_deltanet")
    assert main(["export", f"run={run}", "to=native", f"path={tmp_path}/made", f"paths.results={home}/results"]) == 0
    assert f"run {run} is in {tmp_path}/made: config.json, model.safetensors, tokenizer.json\n" in capsys.readouterr().out
    assert main(["import", f"path={tmp_path}/made", f"paths.results={tmp_path}/store"]) == 0
    assert torch.equal(logits(run, tmp_path / "store", tokens()), logits(run, home / "results", tokens()))
    there, here = (load_results(folder / name, {run}) for folder, name in ((home, "results"), (tmp_path, "store")))
    # How fast it was trained is a result as well, and belongs to the run.
    assert there[["metric", "split", "slice", "value", "count"]].equals(here[["metric", "split", "slice", "value", "count"]])
    assert load_runs(tmp_path / "store").set_index("run_id").loc[run, "status"] == "done"
    assert main(["evaluate", f"run={run}", "eval=position", f"paths.results={tmp_path}/store"]) == 0
    assert main(["import", f"path={tmp_path}/made", f"paths.results={tmp_path}/store"]) == 2
    assert "is in" in capsys.readouterr().err


@pytest.mark.parametrize("keys", [("model=transformer",), ("model=swa", "model.mixer.window=7", "size.logit_soft_cap=4")])
def test_a_model_of_attention_has_the_logits_of_transformers_and_comes_back(keys, home, trained, tmp_path):
    run = trained(*keys)
    assert main(["export", f"run={run}", "to=hf", f"path={tmp_path}/made", f"paths.results={home}/results"]) == 0
    assert main(["import", "from=hf", f"path={tmp_path}/made", *data(home), f"paths.results={tmp_path}/store"]) == 0
    ((_, imported),) = load_runs(tmp_path / "store")[["status", "run_id"]].to_numpy()
    assert imported != run
    torch.testing.assert_close(logits(imported, tmp_path / "store", tokens()), logits(run, home / "results", tokens()))
    transformers = pytest.importorskip("transformers", reason="needs pip install -e '.[hf]'")
    model, told = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "made", output_loading_info=True)
    assert not any(told[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        theirs = model(input_ids=tokens()).logits
    torch.testing.assert_close(theirs, logits(run, home / "results", tokens()), rtol=1e-4, atol=2e-5)


def test_training_goes_on_from_an_imported_model(home, trained, tmp_path):
    run = trained("model=transformer")
    assert main(["export", f"run={run}", "to=hf", f"path={tmp_path}/made", f"paths.results={home}/results"]) == 0
    store = f"paths.results={tmp_path}/store"
    assert main(["import", "from=hf", f"path={tmp_path}/made", *data(home), store]) == 0
    (imported,) = load_runs(tmp_path / "store")["run_id"]
    (gone_on,) = suite.run("model=transformer", *data(home), *TRAINED, f"train.start_from={imported}", store)["run_id"]
    losses = suite.load_curves(tmp_path / "store").query("run_id == @gone_on")["loss"]
    first = suite.load_curves(home / "results").query("run_id == @run")["loss"]
    assert losses.iloc[0] < first.iloc[0] - 1


@pytest.mark.parametrize(
    ("keys", "to", "said"),
    [
        (("model=gated_deltanet",), "hf", "model.mixer.type=deltanet.DeltaNet has no counterpart there"),
        (("model=transformer", "model.mixer.rope_base=null"), "hf", "model.mixer.rope_base=null is out of range"),
        (("model=transformer",), "fla", "no model of fla has size.logit_soft_cap=30"),
        (("model=transformer",), "onnx", "to=onnx is unknown, permitted are native, hf, fla"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_its_setting(keys, to, said, home, trained, tmp_path, capsys):
    run = trained(*keys)
    capsys.readouterr()
    assert main(["export", f"run={run}", f"to={to}", f"path={tmp_path}/made", f"paths.results={home}/results"]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_no_model_of_fla_caps_its_logits():
    found = importlib.util.find_spec("fla")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs pip install -e '.[gpu]'")
    sources = list(Path(found.submodule_search_locations[0], "models").rglob("*.py"))
    capped = [path for path in sources if re.search("soft_?cap", path.read_text(), flags=re.I)]
    assert len(sources) > 50 and not capped


def damaged(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return damage


def with_one_weight_changed(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


@pytest.mark.parametrize(
    ("source", "damage", "said"),
    [
        ("native", lambda folder: (folder / "config.json").unlink(), "config.json can't be read"),
        ("native", lambda folder: (folder / "model.safetensors").write_bytes(b"not it"), "model.safetensors can't be read"),
        ("native", damaged("config.json", lambda held: held.update(version=2)), "config.json is of version 2, permitted is 1"),
        ("native", damaged("config.json", lambda held: held.update(run_id="0" * 12)), "belongs to a run of another name"),
        ("native", damaged("config.json", lambda held: held["config"]["train"].update(lr=2e-2)), "a run of another name"),
        ("native", damaged("config.json", lambda held: held.pop("rows")), "config.json is not what was exported"),
        (
            "native",
            damaged("config.json", lambda held: held["rows"][0].update(value=0.5)),
            "config.json is not what was exported",
        ),
        ("native", with_one_weight_changed, "model.safetensors is not what was exported: its digest is another one"),
        ("hf", damaged("config.json", lambda held: held.update(hidden_activation="gelu")), "hidden_activation=gelu is not this"),
        ("hf", damaged("config.json", lambda held: held.pop("attn_logit_softcapping")), "attn_logit_softcapping=null is not"),
        ("hf", damaged("config.json", lambda held: held.update(final_logit_softcapping=None)), "final_logit_softcapping=null"),
        ("hf", damaged("config.json", lambda held: held.update(model_type="llama")), "model_type=llama is no architecture"),
        ("hf", damaged("config.json", lambda held: held.update(num_hidden_layers=3)), "has no model.layers.2"),
        ("hf", damaged("config.json", lambda held: held.update(intermediate_size=49)), "model.safetensors is not of this model"),
        ("hf", damaged("config.json", lambda held: held.update(vocab_size=99)), "vocab_size=99, and the task 257"),
    ],
)
def test_a_folder_that_is_not_what_it_says_is_refused_in_a_line(source, damage, said, home, trained, tmp_path, capsys):
    run = trained("model=transformer")
    kept = home / f"kept {source}"
    if not kept.exists():
        assert main(["export", f"run={run}", f"to={source}", f"path={kept}", f"paths.results={home}/results"]) == 0
    shutil.copytree(kept, tmp_path / "made")
    damage(tmp_path / "made")
    capsys.readouterr()
    asked = data(home) if source == "hf" else []
    assert main(["import", f"from={source}", f"path={tmp_path}/made", *asked, f"paths.results={tmp_path}/store"]) == 2
    told = capsys.readouterr().err
    assert said in told and len(told.splitlines()) == 1
    assert not any((tmp_path / "store").glob("runs/*"))


def test_a_folder_of_an_export_before_there_were_digests_is_read(home, trained, tmp_path):
    run = trained("model=transformer")
    assert main(["export", f"run={run}", "to=native", f"path={tmp_path}/made", f"paths.results={home}/results"]) == 0
    damaged("config.json", lambda held: (held.pop("digest"), held.pop("weights")))(tmp_path / "made")
    assert main(["import", f"path={tmp_path}/made", f"paths.results={tmp_path}/store"]) == 0


def test_an_export_to_where_no_folder_can_be_is_refused_in_a_line(home, trained, tmp_path, capsys):
    (tmp_path / "file").write_text("of mine")
    run = trained("model=transformer")
    capsys.readouterr()
    place = f"path={tmp_path}/file/made"
    assert main(["export", f"run={run}", "to=native", place, f"paths.results={home}/results"]) == 2
    assert capsys.readouterr().err == f"error: {place} can't be made: Not a directory\n"


def test_an_export_never_takes_the_place_of_another(home, trained, tmp_path, capsys):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "mine").write_text("of mine")
    run = trained("model=transformer")
    assert main(["export", f"run={run}", "to=native", f"path={tmp_path}/made", f"paths.results={home}/results"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["made"] and (tmp_path / "made" / "mine").read_text() == "of mine"


def test_bytes_are_a_tokenizer_of_the_same_ids(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(of_bytes())
    tokenizer = FileTokenizer(str(tmp_path / "tokenizer.json"), None)
    text = "naïve café — 東京 😀\n\n  end \x00\x7f<|endoftext|>"
    assert tokenizer.encode(text) == list(text.encode()) and tokenizer.decode(list(text.encode())) == text
    assert (tokenizer.bos, tokenizer.vocab_size) == (256, 257)


BENCHMARK = {
    "task": "cats",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc"}],
    "metadata": {"version": 1},
}


@pytest.fixture(scope="module")
def checkpoints(home: Path) -> Path:
    """Folders with a small Llama and a small GPT-2 of random weights, and their tokenizer."""
    transformers = pytest.importorskip("transformers", reason="needs pip install -e '.[hf]'")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    # More ids than the tokenizer has, as most have.
    kinds = {
        "llama": transformers.LlamaConfig(vocab_size=264, num_key_value_heads=2, eos_token_id=3, **sizes),
        "gpt2": transformers.GPT2Config(vocab_size=264, n_positions=64, n_embd=32, n_layer=2, n_head=2),
    }
    for name, config in kinds.items():
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(home / name)
        (home / name / "tokenizer.json").write_bytes(of_bytes())
    return home


def asked(home: Path, name: str, **changes: object) -> list[str]:
    own = {"data.tokenizer": home / name / "tokenizer.json", **changes}
    return ["model=hf", f"model.path={home / name}", *data(home, **own), "compute.log_seconds=0"]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_checkpoint_is_evaluated_beside_trained_models(name, checkpoints, tmp_path, capsys):
    (tmp_path / "benchmarks").mkdir()
    docs = [{"question": "the cat", "choices": [" sat", " ran"], "label": 0}] * 3
    (tmp_path / "cats.jsonl").write_text("\n".join(map(json.dumps, docs)))
    task = {**BENCHMARK, "dataset_kwargs": {"data_files": {"test": str(tmp_path / "cats.jsonl")}}}
    (tmp_path / "benchmarks" / "cats.yaml").write_text(yaml.safe_dump(task))
    evaluations = ["eval=position,lm_eval,length", "eval.tasks=cats", f"eval.include_path={tmp_path}/benchmarks"]
    store = f"paths.results={tmp_path}/store"
    assert (
        main(["run", *asked(checkpoints, name), *evaluations, "eval.length_factors=[1,2]", "eval.study_tokens=256", store]) == 0
    )
    ((run_id, status, label, size),) = load_runs(tmp_path / "store")[["run_id", "status", "model_label", "size"]].to_numpy()
    assert (status, label, size) == ("done", name, "own")
    rows = load_results(tmp_path / "store", {run_id})
    assert {"train", "position", "lm_eval", "length"} <= set(rows["evaluation"]) | set(rows["stage"])
    assert {"nll", "bits_per_byte", "accuracy"} <= set(rows["metric"]) and rows["value"].notna().all()
    assert main(["generate", f"run={run_id}", "prompt=the cat", "tokens=5", store]) == 0
    assert capsys.readouterr().out.endswith("\n")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["train.steps=3"], "train.steps=3 is out of range, permitted are 0 with model=hf, which is evaluated and not trained"),
        (["train=language"], "train.steps=250 is out of range, permitted are 0 with model=hf"),
        (["train.autocast=bfloat16"], "train.autocast=bfloat16 is out of range, permitted are none with model=hf"),
        (["match.by=parameters"], "match.by=parameters is out of range, permitted are none with model=hf"),
        (["task.reset_at_bos=true"], "task.reset_at_bos=true is out of range, permitted are false with model=hf"),
        (["data.tokenizer=null"], "data.tokenizer=null is another tokenizer, permitted are "),
        (["task.seq_len=128"], "has no positions for 128 tokens, permitted are up to 64"),
        (["backend=fla"], "backend=fla does not compute this model with its settings, permitted are auto, torch"),
        (["model.checkpoint.digest=0123456789abcdef"], "model.checkpoint.digest=0123456789abcdef is out of range"),
        (["model.checkpoint.dtype=int8"], "model.checkpoint.dtype=int8 is unknown, permitted are float32, bfloat16"),
    ],
)
def test_what_does_not_go_with_a_checkpoint_is_refused_in_a_line(change, said, checkpoints, tmp_path, capsys):
    request = {key: value for key, _, value in (each.partition("=") for each in asked(checkpoints, "gpt2"))}
    request |= {key: value for key, _, value in (each.partition("=") for each in change)}
    assert main(["check", *(f"{key}={value}" for key, value in request.items()), f"paths.results={tmp_path}/store"]) == 2
    told = capsys.readouterr().err
    assert said in told and len(told.splitlines()) == 1


@pytest.mark.parametrize("others", [["task=mqar"], ["task=in_context_regression"]])
def test_a_checkpoint_reads_text_alone(others, checkpoints, capsys):
    assert main(["check", "model=hf", f"model.path={checkpoints}/llama", *others]) == 2
    assert "permitted are language with model=hf" in capsys.readouterr().err


def test_a_folder_has_to_be_said(capsys):
    assert main(["check", "model=hf"]) == 2
    assert capsys.readouterr().err == "error: model.path is needed: give model.path=VALUE\n"


def test_the_name_of_a_run_is_that_of_the_weights_and_not_of_their_place(checkpoints, tmp_path):
    shutil.copytree(checkpoints / "llama", tmp_path / "moved")
    here, moved = (plan(asked_at(*place, checkpoints))[0] for place in ((checkpoints, "llama"), (tmp_path, "moved")))
    assert here.run_id == moved.run_id and here.written["model"]["path"] != moved.written["model"]["path"]
    config = json.loads((tmp_path / "moved" / "config.json").read_text())
    (tmp_path / "moved" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    assert plan(asked_at(tmp_path, "moved", checkpoints))[0].run_id != here.run_id


def asked_at(folder: Path, name: str, home: Path) -> list[str]:
    own = {"data.tokenizer": folder / name / "tokenizer.json"}
    return ["model=hf", f"model.path={folder / name}", *data(home, **own), "eval=none"]


def test_weights_that_have_changed_are_not_evaluated_under_the_old_name(checkpoints, tmp_path, capsys):
    shutil.copytree(checkpoints / "llama", tmp_path / "mine")
    store = f"paths.results={tmp_path}/store"
    assert main(["run", *asked_at(tmp_path, "mine", checkpoints), store]) == 0
    shutil.copy(checkpoints / "gpt2" / "model.safetensors", tmp_path / "mine" / "model.safetensors")
    capsys.readouterr()
    assert main(["evaluate", "run=all", "eval=position", store]) == 1
    assert "is not what the run was planned with" in capsys.readouterr().err


def test_without_transformers_the_remedy_is_told(checkpoints, monkeypatch, capsys):
    library.library.cache_clear()
    monkeypatch.setattr(library, "version", lambda name: None)
    with pytest.raises(RequestError, match=r"pip install 'linear-rnn-suite\[hf\]'"):
        library.built(checkpoints / "llama", "float32")
