"""How fast a model is, beside what the device could do (MesaNet, arXiv 2506.05233, Figs. 2 and 6).

A layer and the whole model by length, at a constant number of tokens; reading a prompt and going on from it, by the
length of the prompt and by how many there are. All with the run's weights, on random tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from conf import settings
from suite.compute.settings import Compute
from suite.evaluation.settings import Asked
from suite.evaluation.studies.prompts import NotCaptured, decode, decode_eagerly, prefill
from suite.evaluation.studies.roofline import Ceilings, measured_ceilings
from suite.evaluation.studies.rows import placed
from suite.evaluation.studies.subject import Subject
from suite.evaluation.studies.timing import Times, timed
from suite.evaluation.studies.workloads import (
    Timed,
    Workload,
    layer_backward,
    layer_forward,
    model_backward,
    model_forward,
    whole_training_step,
)
from suite.machine.devices import select_device
from tasks.progress import counted
from tasks.task import Measurement

# What `compute` says of how a model is trained.
ACCELERATION = ("compile", "cuda_graph", "activation_checkpointing")
# What each part of the study times, by the name in the slice `work`.
PARTS: dict[str, dict[str, Callable[[Workload], Timed]]] = {
    "layer": {"layer forward": layer_forward, "layer forward + backward": layer_backward},
    "model": {"forward": model_forward, "forward + backward": model_backward, "training step": whole_training_step},
    "generation": {"prefill": prefill, "decode": decode, "decode eagerly": decode_eagerly},
}
# Where there is no graph to capture, both ways to decode are one.
ON_GPU = ("decode eagerly",)
# What keeps a piece of work from being timed is recorded in its place, under these names.
OBSTACLES = {torch.OutOfMemoryError: "out_of_memory", MemoryError: "out_of_memory", NotCaptured: "not_captured"}


class Settings(settings.Settings, kw_only=True):
    """timed_lengths: of the sequences of a timed pass over eval.study_tokens. prompt_lengths: of prompts that are read and
    continued. decode_batch_sizes: how many at once. Prompts of the first length come in every number, and every length in
    the first number.
    """

    timed_lengths: tuple[settings.Count, ...]
    prompt_lengths: tuple[settings.Count, ...]
    decode_batch_sizes: tuple[settings.Count, ...]


def planned(asked: Asked) -> list[dict[str, Any]]:
    """A stage for a layer and for the model at each of eval.timed_lengths, and one for each prompt, by length and number.

    The device is among the settings, and of the model's what `compute` says of training: with others all is measured anew.
    Raises ValueError for a length that does not divide eval.study_tokens.
    """
    if asked.task.trains:
        return []
    own, compute = asked.own, asked.compute
    lengths, prompts, counts = own.timed_lengths, own.prompt_lengths, own.decode_batch_sizes
    for length in lengths:
        if asked.tokens % length:
            raise ValueError(f"eval.timed_lengths has {length}, permitted are divisors of eval.study_tokens={asked.tokens}")
    stages = [{"part": part, "length": length} for part in ("layer", "model") for length in lengths]
    cells = [(count, prompts[0]) for count in counts if prompts] + [(counts[0], length) for length in prompts if counts]
    stages += [{"part": "generation", "batch_size": count, "length": length} for count, length in dict.fromkeys(cells)]
    accelerated = {name: getattr(compute, name) for name in ACCELERATION}
    stages = [{**stage, **(accelerated if stage["part"] == "model" else {})} for stage in stages]
    return [{**stage, "device": _device_name(compute)} for stage in stages]


def _device_name(compute: Compute) -> str:
    device = select_device(compute.device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {compute.threads} thread{'s' if compute.threads > 1 else ''}"


def measure(subject: Subject, asked: Mapping[str, Any]) -> list[Measurement]:
    """For every piece of work of the stage's part: latency_ms, the median, with the quartiles latency_ms_low and _high;
    cold_ms, of the first call; floor_ms, by the roofline, and roofline_fraction, the floor over the median; work_flops and
    least_bytes behind it; and, on a GPU, peak_memory_bytes, weights included. Or what kept it from being timed.

    And the ceilings, matmul_flops_per_second and copy_bytes_per_second, measured in the same process.
    """
    batch_size = asked.get("batch_size", asked["tokens"] // asked["length"])
    # All stages are of one run, and each has settings of its own for how its model is trained.
    own = {name: asked[name] for name in ACCELERATION if name in asked}
    cell = Workload(replace(subject, compute=subject.compute.replace(own)), batch_size, asked["length"])
    ceilings = measured_ceilings(subject.device, cell.dtype)
    rows = [_row("matmul_flops_per_second", ceilings.flops_per_second), _row("copy_bytes_per_second", ceilings.bytes_per_second)]
    rows = placed(rows, {"work": asked["part"]}, subject.task)
    parts = PARTS[asked["part"]].items()
    for name, prepare in counted(parts, len(parts)):
        if name in ON_GPU and subject.device.type != "cuda":
            continue
        rows += placed(_work_rows(cell, prepare, ceilings), {"work": name}, subject.task)
    place = {"batch": batch_size, "length": asked["length"], "device": asked["device"]}
    return placed(rows, {**place, **_acceleration(asked)}, subject.task)


def _acceleration(asked: Mapping[str, Any]) -> dict[str, int | str]:
    """How the stage's model is trained, as its rows say it; a stage that trains nothing has no acceleration."""
    return {
        "compiled": int(asked.get("compile", False)),
        "cuda_graph": str(asked.get("cuda_graph", "auto")).lower(),
        "checkpointed": int(asked.get("activation_checkpointing", "none") == "blocks"),
    }


def _work_rows(cell: Workload, prepare: Callable[[Workload], Timed], ceilings: Ceilings) -> list[Measurement]:
    device = cell.subject.device
    try:
        work = prepare(cell)
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        times = timed(work.run, device)
    except tuple(OBSTACLES) as error:
        return [_row(name, 1.0) for kind, name in OBSTACLES.items() if isinstance(error, kind)]
    finally:
        cell.model.zero_grad(set_to_none=True)
    rows = _time_rows(work, times, ceilings)
    if device.type == "cuda":
        rows.append(_row("peak_memory_bytes", torch.cuda.max_memory_allocated(device) - work.aside_bytes))
    return rows


def _time_rows(work: Timed, times: Times, ceilings: Ceilings) -> list[Measurement]:
    floor = ceilings.floor_ms(flops=work.flops, moved_bytes=work.moved_bytes)
    median = times.median / work.parts
    values = {
        "latency_ms": median,
        "latency_ms_low": times.low / work.parts,
        "latency_ms_high": times.high / work.parts,
        "cold_ms": times.cold / work.parts,
        "floor_ms": floor,
        "roofline_fraction": floor / median,
        "work_flops": work.flops,
        "least_bytes": work.moved_bytes,
    }
    return [_row(metric, value, times.count) for metric, value in values.items()]


def _row(metric: str, value: float, count: int = 1) -> Measurement:
    return Measurement(metric, value, "", {}, count)
