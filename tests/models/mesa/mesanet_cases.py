"""Mesa layers and models of a size to test, and what goes into them."""

from __future__ import annotations

import torch
from torch import Tensor

from models.backbone.language_model import LanguageModel
from models.mesa.mixer import Mesa
from tests.models import built

B, H = 2, 2
CHUNK_SIZE = 8

LAYER = {
    "d_model": 24,
    "backend": "torch",
    "num_heads": H,
    "key_dim": 16,
    "value_dim": 8,
    "conv_width": 4,
    "convolution": "query_key",
    "feature_map": "silu_l2",
    "affine_keys": False,
    "output_gate": "none",
    "output_gate_rank": None,
    "forget_gate_init": 0.98,
    "decay_rates": None,
    "input_gate_init": 0.5,
    "forget_cap": 0.9975,
    "regularizer_floor": 0.25,
    "regularizer_init": 1.0,
    "step_size_init": 0.07,
    "solver": {
        "name": "cg",
        "max_steps": 5,
        "tolerance": 0.0,
        "stop": "right_hand_side",
        "initial": "diagonal",
        "gradient": "implicit",
    },
    "solve_precision": "float32",
    "random_steps": None,
    "solve_from": None,
    "signed_decay": False,
    "decode": "solver",
    "refresh": None,
    "norm_eps": 1e-6,
    "chunk_size": CHUNK_SIZE,
}


def build_layer(**changes: object) -> Mesa:
    layer = built.mixer(Mesa, {**LAYER, **changes})
    layer.reset_parameters(torch.Generator().manual_seed(0))
    return layer


def build_model(num_blocks: int = 2, **changes: object) -> LanguageModel:
    mixers = [build_layer(**changes) for _ in range(num_blocks)]
    model = LanguageModel(built.size(d_model=24, mlp_dim=16), mixers, vocab_size=11)
    model.reset_parameters(seed=0)
    return model.double()


def draw_x(length: int, seed: int = 0) -> Tensor:
    return torch.randn(B, length, 24, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw_tokens(length: int) -> Tensor:
    return torch.randint(11, (B, length), generator=torch.Generator().manual_seed(0))
