"""What `check` says of runs before they start: what they train, what they take, and how long that is on which devices."""

from __future__ import annotations

from collections.abc import Sequence

from suite.machine.devices import device_name, select_device
from suite.machine.peaks import Devices, of_device
from suite.plan import Run, planned_task
from suite.request.budget import ASSUMED_MFU, disk_of, flops_of, memory_of, seconds_of
from suite.store.foreign import counted

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0


def plan_lines(run: Run, devices: Devices | None) -> list[str]:
    """Steps and tokens, memory, disk and time of a run, a line each. devices: None for those that are here."""
    config, train = run.config, run.config.train
    if not train.steps:
        return ["  train   nothing"]
    vocab_size = getattr(run.interface, "vocab_size", 0)
    flops, per_step = flops_of(config, run.cost), train.batch_size * config.task.seq_len
    text_tokens = 0
    if config.data_name != "synthetic":
        text_tokens = (planned_task(config.task)[0].num_examples("train") or 0) * config.task.seq_len
    passes = f", {_few(train.steps * per_step / text_tokens)} times the text" if text_tokens else ""
    number = devices.count if devices else 1
    memory = memory_of(config, run.cost, run.compute, vocab_size=vocab_size, devices=number)
    held = [f"{name} {amount(getattr(memory, name))}" for name in ("weights", "gradients", "moments", "activations")]
    disk = disk_of(config, run.cost, run.compute, vocab_size=vocab_size, text_tokens=text_tokens)
    stored = [f"{name} {amount(size)}" for name in ("checkpoints", "weights", "tokens") if (size := getattr(disk, name))]
    shape = f"{per_step:,} tokens ({train.batch_size:,} x {config.task.seq_len:,})"
    return [
        f"  train   {counted(train.steps, 'step')} of {shape}, {train.steps * per_step:,} in all{passes}; {flops:.3g} FLOPs",
        f"  memory  about {amount(memory.total)} a device: {', '.join(held)}",
        f"  disk    about {amount(disk.total)}: {', '.join(stored)}",
        f"  time    {_time([run], flops, devices)}",
    ]


def total_line(runs: Sequence[Run], devices: Devices | None) -> str:
    """What all runs of a request take together."""
    flops = sum(flops_of(run.config, run.cost) for run in runs)
    return f"{counted(len(runs), 'run')} in all: {flops:.3g} FLOPs; {_time(runs, flops, devices)}"


def amount(size: float) -> str:
    """Bytes in the unit that gives a number of few digits: 850 MB, 1.2 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def duration(seconds: float) -> str:
    """Seconds in the largest unit of which there is one and a half."""
    for unit, length in (("days", DAY), ("hours", HOUR), ("minutes", MINUTE)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.2g} seconds"


def _few(number: float) -> str:
    """A number in three digits, or whole."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _time(runs: Sequence[Run], flops: float, devices: Devices | None) -> str:
    """How long runs of so many FLOPs take on devices that are all at work: on those of one run, or each run on one."""
    here = device_name(select_device(runs[0].compute.device))
    on = devices or of_device(here)
    if on is None:
        return f"no peak is known of this {here}; on=h100x8 says how long it is there"
    precision = runs[0].config.train.autocast
    # A run by itself is one device's, of however many.
    alone = len(runs) == 1 and runs[0].compute.parallel == "none"
    used = Devices(on.name, 1, on.bfloat16, on.float32) if alone else on
    kind = "bfloat16" if precision == "bfloat16" else "float32"
    assumed = f"at an assumed {ASSUMED_MFU:.0%} of {used.flops_per_second(precision) / 1e12:,.0f} TFLOP/s in {kind}"
    one = ", one of them: compute=ddp and compute=fsdp use all" if alone and on.count > 1 else ""
    return f"about {duration(seconds_of(flops, used, precision))} on {used.count} x {used.name}{one}, {assumed}"
