"""Protocols: presets that pin settings of runs, and what they say of choosing and averaging."""

from __future__ import annotations

import pytest

from conf.groups import find, options
from suite.cli import main
from suite.plan import plan
from suite.request.compose import compose_one

PINNED = {
    "zoology_fig2": {"task.vocab_size": 8192, "train.decays": "all", "train.final_lr": 0.0, "size.mlp_dim": 0},
    "zoology_based": {"task.seq_len": 256, "train.stop_at": 0.99, "size.mlp_dim": 0, "train.hold_steps": 704},
    "madlab": {"train.schedule": "constant", "train.batch_size": 128, "train.autocast": "bfloat16", "size.d_model": 128},
    "mesanet_mad": {"train.batch_size": 32, "train.final_lr": 1e-5, "train.warmup_steps": 750, "size.num_heads": 8},
    "regbench": {"train.keep": "best", "train.warmup_from": 1e-6, "task.num_train": 5000},
    "mesanet_regbench": {"size.head_dim": 128, "train.warmup_steps": 25000, "train.final_lr": 2.5e-5},
}


def test_every_protocol_is_tested_here():
    assert {*PINNED, "clean"} == set(options("protocol"))


@pytest.mark.parametrize("name", sorted(PINNED))
def test_a_protocol_pins_what_it_says(name):
    (run,) = plan([f"protocol={name}", "model=gla"])
    assert {key: run.cell[key] for key in PINNED[name]} == PINNED[name]
    told = compose_one([f"protocol={name}", "model=gla"]).protocol
    assert told.name == name and told.source and told.deviations
    assert run.facts["protocol"] == run.names["protocol"] == name


def test_what_is_typed_stands_above_a_protocol():
    (run,) = plan(["protocol=mesanet_mad", "task=mad_memorization", "model=gla", "train.steps=1600", "train.lr=5e-4"])
    assert (run.config.task.name, run.config.train.steps, run.config.train.lr) == ("mad_memorization", 1600, 5e-4)
    assert run.config.train.batch_size == 32


def test_the_suite_s_own_protocol_changes_no_run():
    (plain,), (clean,) = (plan(["model=gla", "task=mqar", *more]) for more in ((), ("protocol=clean",)))
    assert plain.run_id == clean.run_id and plain.protocol == "clean"


def test_protocols_are_listed_and_a_slip_is_one_line(capsys):
    assert main(["list", "protocols"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(options("protocol"))
    assert main(["check", "protocol=zoology", "model=gla"]) == 2
    assert main(["check", "protocol.select_on=train", "model=gla"]) == 2
    assert capsys.readouterr().err.count("\n") == 2


@pytest.mark.parametrize("name", sorted(PINNED))
def test_a_published_protocol_names_its_source_in_its_file(name):
    assert find("protocol", name).read_text().startswith("# @package _global_\n# ")
