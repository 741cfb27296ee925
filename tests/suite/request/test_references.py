"""What stands for a reference is what OmegaConf has for it."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from suite.request.references import mentioned, resolved

SIZE = {"d_model": 64, "norm_eps": 1e-6, "tied": True, "name": "tiny", "limit": None, "widths": [1, 2], "inner": {"x": "a b"}}
SIZE |= {"again": "${size.d_model}", "nested": {"again": ["${size.name}"], "near": "${.again}"}, "open": "???"}


@pytest.mark.parametrize(
    "value",
    [
        *(f"${{size.{key}}}" for key in (*SIZE, "inner.x") if key != "open"),
        "${data}",
        "d${size.d_model}",
        "${share_of:0.5,${size.d_model}}",
        "${oc.select:size.d_model,3}",
        "${oc.select:rates.${size.name},5.0e-3}",
        "${oc.select:rates.${size.name}.deeper,5.0e-3}",
        "${oc.select:rates.${size.again},1e-3}",
        "${oc.select:rates.small,+3}",
        "${oc.select:rates.small,true}",
        "${oc.select:rates.small,a.b}",
        "${oc.select:rates.open,2}",
        "${oc.select:rates.null,2}",
        "${oc.select:rates.odd,2}",
        "${oc.select:rates,2}",
        "${oc.select:model.way.tiny,5.0e-3}",
        "${oc.select:size.widths.0,5}",
        "${oc.select:size.name.x,5}",
        "${oc.select:rates.small,${size.digits}}",
        "${oc.select:rates.small,${size.d_model}}",
        "${.near}",
        "${model.near}",
        "\\${size.d_model}",
        ["${size.name}", {"deep": "${size.d_model}"}],
    ],
)
def test_a_reference_becomes_what_omegaconf_makes_of_it(value) -> None:
    sections = {
        "model": {"near": 3, "way": "${rates_of}", "value": value, "other": {"value": "${size.name}"}},
        "size": SIZE | {"open": 1, "digits": "7"},
        "rates_of": {"tiny": 4e-3},
        "data": {"name": "text", "to_give": "???"},
    }
    ours, theirs = resolved("model", sections), OmegaConf.to_container(OmegaConf.create(sections), resolve=True)["model"]
    assert ours == theirs and type(ours["value"]) is type(theirs["value"])
    assert sections["model"]["value"] is value


@pytest.mark.parametrize("value", ["${size.nothing}", "${size.d_model.x}", "${size.open}", "${nowhere.x}", "${model}"])
def test_a_reference_to_nothing_is_an_error(value) -> None:
    with pytest.raises(OmegaConfBaseException):
        resolved("model", {"model": {"value": value}, "size": SIZE})


def test_the_sections_of_references_are_among_the_words_mentioned() -> None:
    assert {"size", "train"} <= mentioned({"a": "${size.d_model}", "b": [{"c": "${share_of:0.1,${train.steps}}"}]})
    assert mentioned({"a": "size", "b": 3}) == frozenset()
