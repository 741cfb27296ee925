"""mLSTM of xLSTM (arXiv 2405.04517), on the shared backbone of MesaNet (arXiv 2506.05233).

Glossary, our name to xLSTM's letter: query q, key k, value v, log_decay log(f) (forget gate), log_beta the input gate's
logit, i = exp(log_beta), state G (C there), normaliser z (n there), stabiliser m.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.backends import resolve
from models.linear_rnn import LinearRNN
from models.mixer import State
from models.ops import mlstm


class MLSTM(LinearRNN):
    """o_t = G_t q_t / max(1, |z_t^T q_t|) with an exponential input gate; q is divided by sqrt(key_dim).

    The input gate is exp(logit), not sigmoid(logit): at the start it is input_gate_init / (1 - input_gate_init).
    """

    name = "mlstm.MLSTM"
    op = mlstm

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        """log_decay <= 0 and, as beta, its logarithm, which is unbounded; both [B, T, H] in float32 or wider."""
        log_decay = self.log_decay(x)
        log_beta = torch.zeros_like(log_decay) if self.input_gate is None else self.input_gate(x)
        return {"log_decay": log_decay, "beta": log_beta}

    def recurrence(
        self, *, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: State
    ) -> tuple[Tensor, State]:
        """The recurrence as the base class describes it, but beta is the logarithm of the input gate."""
        op = resolve(mlstm, self.kernel, length=q.shape[1], chunk_size=self.settings.chunk_size)
        held = mlstm.MLSTMState(state["G"], state["z"], state["m"])
        o, held = op(q=q / math.sqrt(self.key_dim), k=k, v=v, log_decay=log_decay, log_beta=beta, state=held)
        return o, held._asdict()

    def init_state(self, batch_size: int) -> State:
        z, m = self.zeros(batch_size, self.num_heads, self.key_dim), self.zeros(batch_size, self.num_heads)
        return {**super().init_state(batch_size), "z": z, "m": m}

    def recurrence_flops_per_token(self) -> float:
        """The outer product written into G and the read-outs of G and z."""
        return self.num_heads * (4.0 * self.value_dim * self.key_dim + 2.0 * self.key_dim)
