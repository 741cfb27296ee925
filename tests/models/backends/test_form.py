"""Which function computes an op."""

from __future__ import annotations

from models.backends import form
from models.ops import delta_rule


def adapter() -> None:
    """Stands for a foreign kernel."""


def test_torch_has_a_form_for_one_token_and_one_for_more() -> None:
    settings = {"backend": "torch", "chunk_size": 8, "adapters": {"fla": adapter}}
    assert form(delta_rule, length=1, **settings) is delta_rule.recurrent
    several = form(delta_rule, length=2, **settings)
    assert several.func is delta_rule.chunked and several.keywords == {"chunk_size": 8}


def test_a_backend_has_its_adapter_for_all_lengths() -> None:
    for length in (1, 2):
        assert form(delta_rule, backend="fla", length=length, chunk_size=8, adapters={"fla": adapter}) is adapter
