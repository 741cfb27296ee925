"""Models of transformers behind the backbone's contract: one of each kind of cache, drawn and saved here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from conf.settings import RequestError
from models.backbone import language_model
from models.backbone.generation import generate
from models.hf.folder import digest
from models.hf.model import HFModel
from suite.evaluation.continuation import Prompt, continue_prompts, score_continuations
from tasks.language.tokenizer import ByteTokenizer
from tests.models.tolerances import assert_near

transformers = pytest.importorskip("transformers", reason="needs pip install -e '.[hf]'")

VOCAB_SIZE, WINDOW = 61, 6
SMALL = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 2}
LLAMA = {**SMALL, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
CONFIGS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: transformers.GPT2Config(vocab_size=VOCAB_SIZE, n_positions=64, n_embd=32, n_layer=2, n_head=2),
    "llama": lambda: transformers.LlamaConfig(**LLAMA),
    "sliding window": lambda: transformers.MistralConfig(**LLAMA, sliding_window=WINDOW),
    "soft caps": lambda: transformers.Gemma2Config(**LLAMA, head_dim=8, sliding_window=WINDOW, final_logit_softcapping=0.1),
    "mamba": lambda: transformers.MambaConfig(**SMALL, state_size=4),
    "experts": lambda: transformers.MixtralConfig(**LLAMA, num_local_experts=4),
}


def saved(folder: Path, kind: str, **others: Any) -> Any:
    """A model of the kind with random weights, written to the folder."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind](), **others).eval()
    model.save_pretrained(folder)
    return model


def read(folder: Path, **changes: Any) -> HFModel:
    values = {"type": "hf", "path": str(folder), "dtype": "float32", "digest": None, **changes}
    model = HFModel(HFModel.Settings.read(values)).eval()
    model.reset_parameters(0)
    return model


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[HFModel, Any]:
    """Ours, read from the folder, and the model of transformers that was saved there."""
    folder = tmp_path_factory.mktemp("saved")
    own = saved(folder, request.param)
    return read(folder), own


def tokens(batch_size: int = 3, length: int = 20) -> torch.Tensor:
    return torch.randint(VOCAB_SIZE, (batch_size, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_logits_and_scores_are_those_of_transformers(pair, monkeypatch):
    ours, theirs = pair
    expected = theirs(input_ids=tokens(), use_cache=False).logits
    features, _ = ours.features(tokens())
    assert_near(ours.head(features), expected, "float32")
    monkeypatch.setattr(language_model, "FEWEST_TOKENS", 8)
    monkeypatch.setattr(language_model, "PART_ELEMENTS", 1)
    parts = list(ours.head_parts(features.flatten(0, 1)))
    assert len(parts) == -(-VOCAB_SIZE // 8)
    assert_near(torch.cat(parts, -1), expected.flatten(0, 1), "float32")
    nll, prediction = ours.score(features.flatten(0, 1), tokens().flatten())
    assert_near(nll, torch.nn.functional.cross_entropy(expected.flatten(0, 1), tokens().flatten(), reduction="none"), "float32")
    assert torch.equal(prediction, expected.flatten(0, 1).argmax(-1))


@torch.no_grad()
def test_a_sequence_cut_anywhere_and_read_by_steps_is_the_whole_one(pair):
    model, _ = pair
    whole, _ = model(tokens())
    first, state = model(tokens()[:, :11])
    second, state = model(tokens()[:, 11:15], state)
    steps = []
    for t in range(15, 20):
        answers, state = model.step(tokens()[:, t], state)
        steps.append(answers)
    assert_near(torch.cat([first, second, torch.stack(steps, 1)], dim=1), whole, "float32")


@torch.no_grad()
def test_a_step_leaves_the_state_that_it_went_on_from(pair):
    model, _ = pair
    _, state = model(tokens()[:, :9])
    once, _ = model.step(tokens()[:, 9], state)
    again, _ = model.step(tokens()[:, 9], state)
    assert torch.equal(once, again)


@torch.no_grad()
def test_a_sequence_by_itself_has_the_scores_that_it_has_among_others(pair):
    model, _ = pair
    pairs = [(row.tolist(), row.tolist()[-4:]) for row in tokens(4, 12)] + [
        (row.tolist(), row.tolist()[-2:]) for row in tokens(2, 7)
    ]
    device = torch.device("cpu")
    together = score_continuations(model, pairs, batch_size=4, device=device)
    alone = score_continuations(model, pairs, batch_size=1, device=device)
    assert [total for total, _ in together] == pytest.approx([total for total, _ in alone], abs=1e-4)


def test_generation_takes_the_tokens_that_whole_passes_take(pair):
    model, theirs = pair
    (generated,) = generate(model, tokens(1, 5), num_tokens=9, temperature=0.0, top_k=None, seed=0)
    read_so_far = tokens(1, 5)
    with torch.no_grad():
        for token in generated:
            assert theirs(input_ids=read_so_far, use_cache=False).logits[0, -1].argmax() == token
            read_so_far = torch.cat([read_so_far, token.view(1, 1)], dim=1)


def test_an_answer_ends_where_the_checkpoint_ends_a_text(tmp_path):
    saved(tmp_path, "llama")
    model, prompt = read(tmp_path), Prompt(tokens(1, 5)[0].tolist(), [], 4)

    def answer() -> str:
        (text,) = continue_prompts(model, ByteTokenizer(), [prompt], batch_size=1, device=torch.device("cpu"))
        return text

    whole = answer()
    model.ends = frozenset({ord(whole[1])})
    assert len(whole) == 4 and answer() == whole[: whole.index(whole[1])]


@torch.no_grad()
def test_the_state_that_is_declared_is_the_state_that_is_held(pair):
    model, _ = pair
    for length in (1, 4, 15):
        _, (state,) = model(tokens(1, length))
        assert model.state_elements(length) == sum(tensor.numel() for tensor in state.values())
        assert model.state_bytes(length, torch.bfloat16) == 4 * model.state_elements(length)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_contractions_of_a_model_without_a_window_are_those_that_are_counted(kind, tmp_path):
    saved(tmp_path, kind)
    model, length = read(tmp_path), 16
    # PyTorch's own attention counts as nothing on a CPU.
    eager = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind](), attn_implementation="eager")
    with FlopCounterMode(display=False) as counter:
        eager(input_ids=tokens(1, length), use_cache=False)
    # The counter sees every pair of two tokens, and a causal model needs those of a token with itself and earlier ones.
    pairs = 2 * 2 * 2 * 32 * (length - (length + 1) / 2)
    assert model.forward_flops_per_token(length) == counter.get_total_flops() / length - pairs


def test_a_token_is_multiplied_with_the_experts_that_it_is_sent_to(tmp_path):
    model = saved(tmp_path, "experts")
    experts = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 3)
    others = sum(parameter.numel() for name, parameter in model.named_parameters() if parameter.ndim == 2 and "embed" not in name)
    attention = 2 * 2 * 2 * 32
    assert read(tmp_path).forward_flops_per_token(1) == 2 * (others + experts / 2) + attention


def test_planning_reads_no_weights(tmp_path):
    saved(tmp_path, "llama")
    settings = HFModel.Settings.read({"type": "hf", "path": str(tmp_path), "dtype": "bfloat16", "digest": None})
    with torch.device("meta"):
        model = HFModel(settings)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert model.state_bytes(10, torch.float32) == 2 * 10 * 2 * 2 * 2 * 8


def test_tokens_behind_the_last_learnt_position_are_refused(tmp_path):
    saved(tmp_path, "gpt2")
    model = read(tmp_path)
    _, state = model(tokens(1, 60))
    with pytest.raises(RequestError, match="has no positions for 65 tokens, permitted are up to 64"):
        model(tokens(1, 5), state)
    with pytest.raises(RequestError, match="has no positions for 65 tokens"):
        model.forward_flops_per_token(65)


def test_other_weights_than_were_planned_are_refused(tmp_path):
    saved(tmp_path, "llama")
    planned = digest(tmp_path)
    model = saved(tmp_path / "other", "gpt2")
    assert digest(tmp_path / "other") != planned
    with pytest.raises(RequestError, match="is not what the run was planned with"):
        read(tmp_path / "other", digest=planned)
    del model


def test_a_model_whose_logits_come_of_more_is_refused(tmp_path, monkeypatch):
    saved(tmp_path, "soft caps")
    monkeypatch.setattr(HFModel, "head", lambda self, features: 2 * self.causal.get_output_embeddings()(features))
    with pytest.raises(RequestError, match="is a gemma2, whose logits don't come of its output embedding"):
        read(tmp_path)


def without_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    held = load_file(folder / "model.safetensors")
    held.pop("model.norm.weight")
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})


def cut_off(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def edited(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return edit


def leading_out(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../part.safetensors"}}))


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (pickled, "has pytorch_model.bin, which may run code, and no model.safetensors, permitted are weights in safetensors"),
        (cut_off, "can't be loaded"),
        (without_weight, "lacks 1 weights, model.norm.weight among them, permitted are whole checkpoints"),
        (leading_out, "model.safetensors.index.json names '../part.safetensors', permitted are .safetensors files in the folder"),
        (edited(model_type="llam"), "has model_type='llam', permitted are the causal language models of transformers .* llama"),
        (edited(model_type="vit"), "is a vit, permitted are the causal language models of transformers"),
        (edited(quantization_config={"bits": 4}), "has quantization_config"),
        (edited(hidden_size="wide"), "can't be built"),
        (edited(intermediate_size=7), "can't be loaded|lacks"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json can't be read"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "has adapter_config.json"),
    ],
)
def test_what_is_no_whole_checkpoint_is_refused_in_a_line(break_it, said, tmp_path):
    saved(tmp_path, "llama")
    break_it(tmp_path)
    with pytest.raises(RequestError, match=said) as refusal:
        read(tmp_path)
    assert str(tmp_path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_code_in_the_folder_is_never_run(tmp_path):
    saved(tmp_path, "llama")
    ran = tmp_path / "ran"
    (tmp_path / "modeling.py").write_text(f"open({str(ran)!r}, 'w')\nclass Model: pass\nclass Config: pass\n")
    edited(auto_map={"AutoModelForCausalLM": "modeling.Model", "AutoConfig": "modeling.Config"})(tmp_path)
    read(tmp_path)
    edited(model_type="foreign")(tmp_path)
    with pytest.raises(RequestError, match="has model_type='foreign'"):
        read(tmp_path)
    assert not ran.exists()


GROWING = ("gpt2", "llama", "experts")
"""Kinds of models that keep the keys and values of all tokens and nothing else."""


@torch.no_grad()
def test_sequences_of_any_lengths_step_together_as_by_themselves(pair):
    model, theirs = pair
    lengths = [9, 3, 9, 6]
    assert model.mixes_lengths == any(theirs.config.model_type == CONFIGS[kind]().model_type for kind in GROWING)
    if not model.mixes_lengths:
        lengths = [6, 6, 6, 6]
    rows = [row[:length] for row, length in zip(tokens(4), lengths, strict=True)]
    alone = [model.features(row[None])[1] for row in rows]
    together = model.gathered([(model.reserve(state, 3), 0) for state in alone])
    left = list(range(4))
    for t in range(5):
        if t == 2:
            # The longest leave: what the others were filled up with goes too. And more tokens come than room was for.
            left, together = [1, 3], model.gathered([(together, 1), (together, 3)])
        step = torch.tensor([5 + i + t for i in left])
        expected = []
        for i, token in zip(left, step, strict=True):
            answers, alone[i] = model.step(token[None], alone[i])
            expected.append(answers)
        assert_near(model.step_(step, together), torch.cat(expected), "float32")
    if model.mixes_lengths:
        assert together[0].cache.get_seq_length() == max(lengths[i] for i in left) + 5


@torch.no_grad()
def test_a_step_that_is_not_in_place_leaves_a_state_with_room(pair):
    model, _ = pair
    _, state = model.features(tokens()[:, :9])
    reserved = model.gathered([(model.reserve(state, 4), row) for row in range(3)])
    first, once = model.step(tokens()[:, 9], reserved)
    expected, _ = model.step(tokens()[:, 10], once)
    model.step(tokens()[:, 0], reserved)
    after, _ = model.step(tokens()[:, 10], once)
    again, _ = model.step(tokens()[:, 9], reserved)
    assert torch.equal(first, again) and torch.equal(expected, after)


def test_answers_to_prompts_of_any_lengths_are_those_of_each_by_itself(pair, monkeypatch):
    model, _ = pair
    prompts = [Prompt(row[:length].tolist(), [], 7) for row, length in zip(tokens(6), (5, 11, 3, 5, 14, 8), strict=True)]
    steps = []
    monkeypatch.setattr(model, "step_", lambda token, state, step_=model.step_: steps.append(len(token)) or step_(token, state))
    alone = continue_prompts(model, ByteTokenizer(), prompts, batch_size=1, device=torch.device("cpu"))
    assert set(steps) == {1}
    steps.clear()
    together = continue_prompts(model, ByteTokenizer(), prompts, batch_size=4, device=torch.device("cpu"))
    assert together == alone and len(set(alone)) > 1
    assert (max(steps) > 2) == model.mixes_lengths
