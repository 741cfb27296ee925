"""What a run takes before it starts: memory, disk, FLOPs and time."""

from __future__ import annotations

import time

import pytest

from suite.cli import main
from suite.machine.peaks import named
from suite.plan import Run, plan
from suite.request.budget import disk_of, flops_of, memory_of, seconds_of
from suite.running.plans import amount, duration, plan_lines

LARGE = ("model=gla", "task=language", "size=400m", "recipe=mesanet_15b", "eval=none")


def one(*more: str) -> Run:
    (run,) = plan([*LARGE, *more])
    return run


def test_flops_are_three_forward_passes_a_token():
    run = one()
    assert flops_of(run.config, run.cost) == pytest.approx(3 * run.cost.flops_per_token * run.facts["train_tokens"])
    assert seconds_of(0.3 * 989e12 * 8 * 60, named("h100x8"), "bfloat16") == pytest.approx(60)


def memory(run: Run, devices: int):
    return memory_of(run.config, run.cost, run.compute, vocab_size=256, devices=devices)


def test_state_is_16_bytes_a_parameter_and_fsdp_divides_it():
    run, alone = one(), memory(one(), 1)
    copies = 2 * run.cost.parameters
    assert alone.weights + alone.gradients + alone.moments == pytest.approx(16 * run.cost.parameters + copies)
    ddp, fsdp = (memory(one(f"compute={name}"), 8) for name in ("ddp", "fsdp"))
    assert (ddp.weights, ddp.moments) == (alone.weights, alone.moments) and fsdp.moments == pytest.approx(alone.moments / 8)
    assert ddp.activations == pytest.approx(alone.activations / 8, rel=0.05)
    assert memory(one("train.autocast=none"), 1).weights == 4 * run.cost.parameters


def test_checkpointing_and_small_batches_keep_fewer_activations():
    whole = memory(one(), 1).activations
    assert memory(one("compute.activation_checkpointing=blocks"), 1).activations < 0.1 * whole
    assert memory(one("compute.micro_batch=8"), 1).activations == pytest.approx(whole * 8 / 256, rel=0.05)


def test_disk_counts_what_is_kept_at_a_time_and_for_good():
    run = one()
    disk = disk_of(run.config, run.cost, run.compute, vocab_size=256, text_tokens=1000)
    assert (disk.checkpoints, disk.weights, disk.tokens) == (24 * run.cost.parameters, 4 * run.cost.parameters, 2000)
    often = one("compute.keep_every=10000")
    assert disk_of(often.config, often.cost, often.compute, vocab_size=2**17, text_tokens=1000).tokens == 4000
    lasting = disk_of(often.config, often.cost, often.compute, vocab_size=256, text_tokens=0)
    assert lasting.checkpoints == (2 + 2) * 12 * run.cost.parameters


def test_the_plan_of_a_billion_parameters_in_shards_is_printed_in_seconds(capsys):
    began = time.monotonic()
    large = [each for each in LARGE if not each.startswith("size=")]
    assert main(["check", *large, "size=1b", "compute=fsdp", "on=h100x8"]) == 0
    said = capsys.readouterr().out
    assert time.monotonic() - began < 60
    assert "28,611 steps of 524,288 tokens (256 x 2,048), 15,000,403,968 in all" in said
    assert "on 8 x h100, at an assumed 30% of 989 TFLOP/s in bfloat16" in said
    for title in ("memory", "disk", "time"):
        assert f"\n  {title} " in said


def test_a_run_alone_is_one_devices_and_a_sweep_is_alls(capsys):
    assert main(["check", *LARGE, "seed=0,1", "on=h100x8"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    times = [line for line in lines if line.startswith("  time")]
    assert len(times) == 2 and all("1 x h100, one of them: compute=ddp and compute=fsdp use all" in line for line in times)
    assert last.startswith("2 runs in all: ") and "on 8 x h100, at" in last


def test_without_a_known_device_no_time_is_said():
    lines = plan_lines(one(), None)
    assert lines[-1].startswith("  time    no peak is known of this CPU") or "assumed" in lines[-1]
    assert plan_lines(plan(["model=gla", "task=efficiency", "eval=none"])[0], None) == ["  train   nothing"]


def test_amounts_and_durations_are_in_units_of_few_digits():
    assert [amount(size) for size in (0, 999, 1500, 2.5e9, 3e13)] == ["0 bytes", "999 bytes", "1.5 kB", "2.5 GB", "30 TB"]
    assert [duration(seconds) for seconds in (1.25, 120, 7200, 86400 * 3)] == ["1.2 seconds", "2 minutes", "2 hours", "3 days"]


def test_other_devices_are_for_check_alone(capsys):
    assert main(["run", *LARGE, "on=h100"]) == 2
    assert "'on=h100' is for check" in capsys.readouterr().err
