"""Rows of the studies as their stages write them, with numbers that are known in closed form."""

from __future__ import annotations

import numpy as np

DOCUMENTS = 40
BANDS = ((0, 1), (1, 16), (16, 64))
FIXED = (0, 1, 2, 5, 10, 30)
TOLERANCES = {1e-2: 3.0, 1e-4: 9.0}
"""Every tolerance with the steps that it takes on average."""
DECODERS = (
    {"decode": "solver, diagonal start", "refresh": 0, "max_steps": 30, "tolerance": 1e-4},
    {"decode": "solver, previous_token start", "refresh": 0, "max_steps": 30, "tolerance": 1e-4},
    {"decode": "solver, diagonal start", "refresh": 0, "max_steps": 2, "tolerance": 0.0},
    {"decode": "solver, previous_token start", "refresh": 0, "max_steps": 2, "tolerance": 0.0},
    {"decode": "sherman_morrison", "refresh": 0, "max_steps": 30, "tolerance": 1e-4},
    {"decode": "sherman_morrison", "refresh": 16, "max_steps": 30, "tolerance": 1e-4},
)


def settings() -> list[dict]:
    """Fixed steps, the two other starts, and the tolerances."""
    rows = [{"solver": "cg", "initial": "diagonal", "max_steps": steps, "tolerance": 0.0} for steps in FIXED]
    rows += [{"solver": "cg", "initial": initial, "max_steps": 0, "tolerance": 0.0} for initial in ("query", "zero")]
    # Another solver at settings of its own that plain conjugate gradients have too.
    rows += [{"solver": "chebyshev", "initial": "diagonal", "max_steps": 30, "tolerance": eps} for eps in (0.0, 1e-4)]
    return rows + [{"solver": "cg", "initial": "diagonal", "max_steps": 30, "tolerance": eps} for eps in TOLERANCES]


def solver_rows(store, *, seed: int, metric: str, offset: float = 0.0) -> list[dict]:
    """The stage `solver`: every step halves the nats that are lost; the documents have a difficulty of their own."""
    own = np.random.default_rng(seed).uniform(1, 2, DOCUMENTS) + offset
    rows, split = [], "validation" if metric == "nll" else "test"
    for setting in settings():
        steps = TOLERANCES.get(setting["tolerance"], float(setting["max_steps"]))
        loss = 0.5**steps * (1 + 0.1 * seed)
        if metric == "nll":
            rows.append(store.row("nll", float(own.mean()) + loss, "validation", examples=list(own + loss), **setting))
            for low, high in BANDS:
                place = {"position_low": low, "position_high": high, **setting}
                rows.append(store.row("nll", 0.0, "validation", examples=list(own + loss * high / 64), **place))
        else:
            rows.append(store.row("accuracy", 0.9 - 0.5 * loss, "test", **setting))
            rows.append(store.row("accuracy", 0.1, "test", num_pairs=8, **setting))
        rows += [
            store.row("solver_steps", steps, split, examples=[steps] * DOCUMENTS, **setting),
            store.row("solver_chunk_steps", 1.5 * steps, split, examples=[1.5 * steps] * DOCUMENTS, **setting),
            store.row("solver_residual", 10.0**-steps, split, **setting),
            store.row("relative_time", 0.2 + steps / 10, split, **setting),
            store.row("microseconds_per_token", 20 + steps, split, **setting),
        ]
    return rows


def decode_rows(store, *, seed: int) -> list[dict]:
    """The stage `decode`: a warm start saves two steps; the recursion's error grows with the position unless refreshed."""
    rows = []
    for decoder in DECODERS:
        recursion, warm = decoder["decode"] == "sherman_morrison", "previous" in decoder["decode"]
        steps = 0.0 if recursion else 2.0 if decoder["max_steps"] == 2 else 9.0 - 2 * warm
        for low, high in ((None, 64), *BANDS):
            place = decoder | ({} if low is None else {"position_low": low, "position_high": high})
            error = (1e-3 * high if not decoder["refresh"] else 1e-3) if recursion else 0.5**steps
            error *= 1 + 0.1 * seed
            rows += [
                store.row("nll", 1.5 + error, "validation", examples=[1.5 + error] * 4, **place),
                store.row("readout_error", error, "validation", examples=[error] * 4, **place),
                store.row("readout_error_worst", 10 * error, "validation", **place),
                store.row("solver_steps", steps, "validation", examples=[steps] * 4, **place),
            ]
        time = 0.4 if recursion else 0.8 if warm else 1.0
        rows.append(store.row("relative_time", time, "validation", **decoder))
        rows.append(store.row("microseconds_per_token", 100 * time, "validation", **decoder))
    return rows


def internals_rows(store, *, seed: int, layers: int = 2, heads: int = 3) -> list[dict]:
    """The stage `internals`: heads that forget less are worse conditioned and take more steps; their order is the seed's."""
    rows = []
    for layer in range(layers):
        for place in range(heads):
            head = (place + seed) % heads
            for low, high in ((None, 64), *BANDS):
                where = {"layer": layer, "head": head} | ({} if low is None else {"position_low": low, "position_high": high})
                values = {
                    "beta": 0.5,
                    "gamma": 0.9 + 0.04 * place + 0.001 * seed,
                    "regularizer": 1.0 + layer,
                    "condition": 10.0**place * (1 + high / 64),
                    "solver_steps": 4.0 + 3 * place,
                    "readout_cosine": 0.99 - 0.1 * place,
                    "indefinite": 0.0,
                }
                rows += [store.row(metric, value, "validation", **where) for metric, value in values.items()]
    return rows


def length_rows(store, *, seed: int) -> list[dict]:
    """The stage `length`: a hundredth of a nat, a step and a doubled condition number more with every doubling."""
    rows = []
    for doublings, factor in enumerate((1, 2, 4)):
        for low, high in ((None, 64 * factor), *BANDS):
            place = {"length_factor": factor, "length": 64 * factor}
            place |= {} if low is None else {"position_low": low, "position_high": high}
            nll = 1.5 + 0.01 * doublings * (1 + 0.1 * seed)
            rows += [
                store.row("nll", nll, "validation", examples=[nll] * 4, **place),
                store.row("perplexity", float(np.exp(nll)), "validation", **place),
                store.row("solver_steps", 8.0 + doublings, "validation", **place),
                store.row("condition", 10.0 * 2**doublings, "validation", **place),
            ]
    return rows


def repeats_rows(store, *, floor: float, capped: bool) -> list[dict]:
    """The stage `repeats`: the condition number is that of a run of unit keys over the floor; the cap bounds the run."""
    rows = []
    for run_length in (0, 16, 128):
        condition = 1 + (min(run_length, 20) if capped else run_length) / floor
        values = {
            "nll": 1.5 + 1e-4 * condition,
            "nll_without_run": 1.5,
            "readout_error": 1e-6 * condition,
            "readout_error_worst": 1e-5 * condition,
            "condition": condition,
            "largest_readout": 3.0,
            "solver_steps": 5.0,
            "finite": 1.0,
        }
        rows += [store.row(metric, value, "validation", run_length=run_length) for metric, value in values.items()]
    return rows


def efficiency_rows(store, *, slow: float = 1.0, gpu: bool = False) -> list[dict]:
    """The stage `efficiency`: a microsecond a token for each piece of work, times `slow`; attention's decoding has no room."""
    rows = []
    device = "GPU 1" if gpu else "CPU, 1 thread"
    cells = [(work, 512 // length, length) for work in ("layer forward", "layer forward + backward") for length in (64, 256)]
    cells += [
        (work, 512 // length, length) for work in ("forward", "forward + backward", "training step") for length in (64, 256)
    ]
    cells += [(work, *cell) for work in ("prefill", "decode") for cell in ((4, 64), (4, 256), (1, 64), (16, 64))]
    for work, batch, length in cells:
        place = {"work": work, "batch": batch, "length": length, "device": device, "compiled": 0}
        if gpu and (work, length) == ("decode", 256):
            rows.append(store.row("out_of_memory", 1.0, "", **place))
            continue
        latency = 1e-3 * slow * batch * (1 if work == "decode" else length)
        values = {
            "latency_ms": latency,
            "latency_ms_low": 0.8 * latency,
            "latency_ms_high": 2.0 * latency,
            "cold_ms": 10 * latency,
            "floor_ms": 0.25 * latency,
            "roofline_fraction": 0.25,
            "work_flops": 1e6,
            "least_bytes": 1e5,
            **({"peak_memory_bytes": 3 * 2.0**30} if gpu else {}),
        }
        rows += [store.row(metric, value, "", **place) for metric, value in values.items()]
        ceilings = {"matmul_flops_per_second": 7.88e14, "copy_bytes_per_second": 4.3e12}
        rows += [store.row(metric, value, "", **{**place, "work": work.split()[0]}) for metric, value in ceilings.items()]
    return rows
