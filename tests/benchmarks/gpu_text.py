"""Validation loss on real text of a small language model, by one fixed protocol that other code can follow as well.

    python -m tests.benchmarks.gpu_text --train train.txt.xz --valid valid.txt.xz --tokenizer tokenizer.json
        --models mesanet:triton gated_deltanet:fla [--steps 420] [--lr 2e-3] [--out FILE] [--dry-run]

8 layers, d_model 512, 4 heads of 128 and an MLP of 1,536: 53 million parameters with the tied embedding of the GPT-2
tokenizer. Documents, separated by lines of <|endoftext|>, are cut into pieces of 20,000 characters, each preceded by that
token; all of it is cut into sequences of 1,024. 420 steps of 64 sequences in the order of one `torch.randperm` an epoch
from a CPU generator of seed 0; AdamW (0.9, 0.98), weight decay 0.1 on tensors of two or more dimensions, 60 steps of
warm-up, a cosine to a tenth, clipping at 1, bfloat16 autocast. NLL over the first 512 validation sequences.
flash-linear-attention 0.6.0 by this protocol on one H200: Gated DeltaNet 5.077, MesaNet 5.374.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.backbone.language_model import LanguageModel
from models.build import build_model
from suite.compute.acceleration import accelerate
from suite.request.compose import compose_one

PIECE_CHARACTERS = 20_000
END = 50_256
VALIDATION_SEQUENCES = 512
SIZE = {"d_model": 512, "num_blocks": 8, "num_heads": 4, "head_dim": 128, "mlp_dim": 1536}
TOY_SIZE = {"d_model": 32, "num_blocks": 2, "num_heads": 2, "head_dim": 16, "mlp_dim": 32}


class Protocol(NamedTuple):
    steps: int
    batch_size: int
    seq_len: int
    warmup_steps: int
    lr: float
    vocab_size: int

    def rate(self, step: int) -> float:
        """The learning rate of a step from 0."""
        cosine = 0.1 + 0.9 * 0.5 * (1.0 + math.cos(math.pi * step / self.steps))
        return self.lr * min((step + 1) / self.warmup_steps, cosine)


def read_tokens(path: Path, tokenizer_path: Path) -> np.ndarray:
    """All tokens of a text file as the protocol has them; kept beside it as a .npy file."""
    cache = Path(f"{path}.npy")
    if cache.exists():
        return np.load(cache)
    from tokenizers import Tokenizer

    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        documents = file.read().split("\n<|endoftext|>\n")
    pieces = [text[i : i + PIECE_CHARACTERS] for text in documents for i in range(0, len(text), PIECE_CHARACTERS)]
    ids: list[int] = []
    for encoding in Tokenizer.from_file(str(tokenizer_path)).encode_batch(pieces):
        ids += [END, *encoding.ids]
    np.save(cache, np.array(ids, dtype=np.uint16))
    return np.load(cache)


def sequences(tokens: np.ndarray, length: int) -> Tensor:
    """[N, length] int64; what is left over at the end is dropped, and so is the last whole sequence without a successor."""
    count = (len(tokens) - 1) // length
    return torch.from_numpy(tokens[: count * length].astype(np.int64)).view(count, length)


def example_order(count: int, needed: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    epochs = [torch.randperm(count, generator=generator) for _ in range(-(-needed // count))]
    return torch.cat(epochs)[:needed]


def build(name: str, backend: str, size: dict[str, int], vocab_size: int, device: torch.device) -> LanguageModel:
    overrides = [f"model={name}", "size=small", *(f"size.{key}={value}" for key, value in size.items())]
    composed = compose_one(overrides)
    model = build_model(composed.config.model, composed.config.size, vocab_size=vocab_size, backend=backend)
    model.reset_parameters(0)
    return model.to(device)


def build_optimizer(model: LanguageModel, lr: float) -> torch.optim.AdamW:
    parameters = list(model.parameters())
    matrices, vectors = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)


def train(model: LanguageModel, data: Tensor, protocol: Protocol) -> dict[str, float]:
    """Trains in place. Returns the seconds a step takes after the first ten, the largest gradient norm and what was skipped."""
    optimizer, device = build_optimizer(model, protocol.lr), data.device
    order = example_order(len(data), protocol.steps * protocol.batch_size).to(device)
    norms, began = [], 0.0
    for step in range(protocol.steps):
        if step == min(10, protocol.steps - 1):
            _wait(device)
            began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = protocol.rate(step)
        batch = data[order[step * protocol.batch_size : (step + 1) * protocol.batch_size]]
        with torch.autocast(device.type, torch.bfloat16):
            loss = mean_loss(model, model.training_features(batch, starts=None), batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        norms.append(norm.detach())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    _wait(device)
    seconds = (time.perf_counter() - began) / max(1, protocol.steps - 10)
    norms = torch.stack(norms)
    return {
        "tokens_per_second": protocol.batch_size * protocol.seq_len / seconds,
        "largest_gradient_norm_after_100": norms[min(100, len(norms) - 1) :].max().item(),
        "non_finite_steps": int((~norms.isfinite()).sum()),
    }


def mean_loss(model: LanguageModel, features: Tensor, batch: Tensor) -> Tensor:
    return model.mean_loss(features[:, :-1].flatten(0, 1), batch[:, 1:].flatten())


@torch.no_grad()
def validate(model: LanguageModel, data: Tensor, batch_size: int) -> float:
    total = 0.0
    for batch in data.split(batch_size):
        with torch.autocast(data.device.type, torch.bfloat16):
            total += mean_loss(model, model.features(batch)[0], batch).item() * len(batch)
    return total / len(data)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path)
    parser.add_argument("--valid", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--models", nargs="+", default=["mesanet:triton", "gated_deltanet:fla"], metavar="MODEL:BACKEND")
    parser.add_argument("--steps", type=int, default=420)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--compile", action="store_true", help="torch.compile every block")
    parser.add_argument("--out", type=Path, help="a file to which a JSON line a model is added")
    parser.add_argument("--dry-run", action="store_true", help="a toy model on random tokens, on any device")
    options = parser.parse_args(arguments)
    if not options.dry_run and None in (options.train, options.valid, options.tokenizer):
        parser.error("--train, --valid and --tokenizer are needed, or --dry-run")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.dry_run:
        protocol, size = Protocol(options.steps, 4, 64, 60, options.lr, vocab_size=97), TOY_SIZE
        training, held_out = (torch.randint(97, (64, 64), generator=torch.Generator().manual_seed(i)).to(device) for i in (0, 1))
    else:
        protocol, size = Protocol(options.steps, 64, 1024, 60, options.lr, vocab_size=50_257), SIZE
        tokens = (read_tokens(path, options.tokenizer) for path in (options.train, options.valid))
        training, held_out = (sequences(x, protocol.seq_len).to(device) for x in tokens)
    for asked in options.models:
        name, _, backend = asked.partition(":")
        model = build(name, backend or "torch", size, protocol.vocab_size, device)
        accelerate(model, compose_one([f"compute.compile={str(options.compile).lower()}"]).compute)
        facts = train(model.train(), training, protocol)
        nll = validate(model.eval(), held_out[:VALIDATION_SEQUENCES], batch_size=32)
        parameters = sum(p.numel() for p in model.parameters())
        row = {"model": name, "backend": backend or "torch", "lr": protocol.lr, "steps": protocol.steps, "parameters": parameters}
        print(json.dumps({**row, "validation_nll": nll, **facts}), flush=True)
        if options.out:
            with options.out.open("a") as file:
                file.write(json.dumps({**row, "validation_nll": nll, **facts}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
