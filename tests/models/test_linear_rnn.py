"""What a linear RNN reads from a token by itself."""

from __future__ import annotations

import pytest
import torch

from tests.models.test_laws import stirred


@pytest.mark.parametrize("name", ["gated_deltanet", "deltaproduct", "mesanet"])
@torch.no_grad()
def test_a_single_token_is_read_as_in_a_sequence_and_dense(name: str) -> None:
    """Kernels of a token take q and k side by side: else a compiled step copies each, by a kernel more."""
    mixer = stirred(name).blocks[0].mixer
    x = torch.randn(3, 1, mixer.output_projection.out_features, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    state = mixer.init_state(3)
    token = mixer.recurrence_inputs(x, state, starts=None).inputs
    sequence = mixer.recurrence_inputs(x.expand(-1, 2, -1), state, starts=None).inputs
    for key in ("q", "k"):
        length = token[key].shape[1]
        assert token[key].is_contiguous()
        torch.testing.assert_close(token[key], sequence[key][:, :length], rtol=1e-12, atol=1e-12)
