"""What the figures of the report of MesaNet say of the solver, its heads, parity, RegBench and speed."""

from __future__ import annotations

import invented
import pandas as pd
import pytest
from paper_runs import add_language, add_parity, add_regbench, drawn, frames_of, said

from reports.kit.parts import Frames, NoData
from reports.pages.paper import figures_mesa, figures_solver, figures_synthetic

STEPS, TOLERANCE = figures_mesa.STEPS, figures_mesa.TOLERANCE


def add_solver(store) -> Frames:
    for seed in (0, 1, 2):
        stages = {
            "solver": invented.solver_rows(store, seed=seed, metric="nll"),
            "length": invented.length_rows(store, seed=seed),
        }
        add_language(store, "mesanet", seed=seed, stages=stages)
    return frames_of(store)


def test_fewer_steps_and_looser_tolerances_stand_beside_the_printed_averages(store) -> None:
    drawing = drawn("figures_5_and_7", add_solver(store))
    titles = [axes.get_title() for axes in drawing.figure.axes]
    assert titles[:3] == ["the paper: global benchmarks", "the paper: local benchmarks", "the paper: in-context recall"]
    assert titles[3:] == ["ours: loss by setting", "ours: loss by position", "ours: solver steps by length"]
    assert "eps 1e-4 reproduce 30 steps" in said(drawing, "Does eps")
    assert "claim holds here: 5 steps lose" in said(drawing, "Few steps hurt late tokens most")
    assert "8.0 at 64 tokens to 10.0 at 256 tokens" in said(drawing, "Mean number of steps by length")
    shown = drawing.data[drawing.data["shows"] == "by position"]
    assert set(shown["max_steps"]) == {5, 10, 30}
    five = drawing.data[(drawing.data["shows"] == "by setting") & (drawing.data["max_steps"] == 5)]
    assert five["mean"].iloc[0] == pytest.approx(1.1 / 32)


def test_what_the_store_lacks_of_the_solver_is_said_and_the_rest_drawn(store) -> None:
    add_language(store, "mesanet", stages={"solver": invented.solver_rows(store, seed=0, metric="nll")})
    drawing = drawn("figures_5_and_7", frames_of(store))
    assert len([axes for axes in drawing.figure.axes if axes.get_visible()]) == 5
    assert "evaluate run=mesanet" in said(drawing, "Ours: no run of language has solver_steps")


@pytest.mark.parametrize(("late", "verdict"), [(0.05, "holds"), (0.0, "does not hold"), (0.012, "is undecided")])
def test_late_tokens_lose_most_where_the_bands_are_apart(late: float, verdict: str) -> None:
    rows = [
        {"position_high": high, "mean": mean, "low": mean - 0.002, "high": mean + 0.002}
        for high, mean in ((16, 0.01), (256, late))
    ]
    setting = {"solver": "cg", "initial": "diagonal", "max_steps": 5, "tolerance": 0.0}
    (note,) = figures_solver._findings({"by position": pd.DataFrame(rows).assign(**setting)}, 5)
    assert f"claim {verdict} here" in note


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [
        ({5: 0.02, 10: 0.002, 30: 0.0}, "holds"),
        ({5: 0.02, 10: 0.05, 30: 0.0}, "does not hold"),
        ({5: 0.0001, 10: 0.0, 30: 0.0}, "is undecided"),
        ({5: 0.02, 10: 0.0199, 30: 0.0}, "is undecided"),
    ],
)
def test_only_five_steps_in_training_are_clearly_worse(store, losses, verdict: str) -> None:
    noise = {0: (0.0, 0.0, 0.0), 1: (0.0005, -0.0005, 0.0), 2: (-0.0005, 0.0005, 0.0)}
    for seed, own in noise.items():
        for (steps, loss), each in zip(losses.items(), own, strict=True):
            settings = {STEPS: steps, TOLERANCE: 0.0}
            add_language(store, "mesanet", size="400m", billions=15, seed=seed, loss=2.4 + loss + each, **settings)
        add_language(store, "mesanet", size="1b", billions=50, seed=seed, **{STEPS: 30, TOLERANCE: 0.0})
        for steps in (5, 30):
            settings = {STEPS: steps, TOLERANCE: 1e-4}
            add_language(store, "mesanet", size="400m", billions=15, seed=seed, loss=2.4, **settings)
    drawing = drawn("figure_13", frames_of(store))
    assert set(drawing.data.loc[drawing.data["solver_tolerance"] > 0, "solver_max_steps"]) == {30}
    assert f"claim {verdict} here" in said(drawing, "The paper's claim") and "400M, 15B tokens." in drawing.notes


def test_trainings_with_one_number_of_steps_are_no_comparison(store) -> None:
    add_language(store, "mesanet", **{STEPS: 30, TOLERANCE: 0.0})
    with pytest.raises(NoData, match="30 fixed solver steps and with fewer. It is filled by"):
        drawn("figure_13", frames_of(store))


def test_a_head_or_two_of_a_layer_stand_out(store) -> None:
    for seed in (0, 1):
        add_language(store, "mesanet", seed=seed, stages={"internals": invented.internals_rows(store, seed=seed)})
    note = said(drawn("figure_14", frames_of(store)), "The paper's claim")
    assert "holds here" in note and "by layer: 1, 1" in note and "their gamma is 0.98" in note


def test_heads_that_are_all_alike_do_not_stand_out() -> None:
    rows = [{"layer": layer, "rank": rank, "metric": "condition", "mean": 10.0 + rank} for layer in range(3) for rank in range(4)]
    assert "does not hold here" in figures_mesa._outstanding(pd.DataFrame(rows))


@pytest.mark.parametrize(
    ("signed_learns", "positive_learns", "verdict"),
    [(True, False, "holds"), (False, False, "does not"), (True, True, "does not")],
)
def test_gates_of_either_sign_learn_parity(store, signed_learns: bool, positive_learns: bool, verdict: str) -> None:
    for seed in (0, 1):
        add_parity(store, "mesanet_signed", signed_learns, seed=seed, **{figures_synthetic.FLOOR: 49.0})
        add_parity(store, "mesanet", positive_learns, seed=seed, **{"train.lr": 1e-3})
        add_parity(store, "mesanet", True, seed=seed, validation=0.8, **{"train.lr": 1e-2})
    drawing = drawn("figure_8", frames_of(store))
    note = said(drawing, "The paper's claim")
    assert f"claim {verdict}" in note and f"MESANET_SIGNED {2 * signed_learns} of 2" in note
    assert "MESANET (2 settings)" in said(drawing, "Models of several settings")


def test_parity_without_one_of_the_two_is_undecided(store) -> None:
    add_parity(store, "mesanet", False)
    assert "undecided here: no run of mesanet_signed" in said(drawn("figure_8", frames_of(store)), "The paper's claim")


def test_two_settings_of_a_model_are_not_averaged_in_a_claim(store) -> None:
    for model in ("mesanet", "gla", "transformer"):
        for norm in ("none", "rms") if model == "gla" else ("none",):
            stages = {split: [store.row("accuracy", 0.5, name)] for split, name in (("train", "validation"), ("test", "test"))}
            settings = {"task.num_train": 1000, "task.seq_len": 960, "model.mixer.norm": norm}
            store.run(model, "regbench", stages=stages, varied=settings)
    note = said(drawn("figure_9", frames_of(store)), "The paper's claim")
    assert "is undecided here: which of the settings of GLA is compared" in note


@pytest.mark.parametrize(
    ("others", "seeds", "verdict"),
    [
        ({"gla": 0.8, "transformer": 0.9}, (0, 1, 2), "holds"),
        ({"gla": 0.95, "transformer": 0.9}, (0, 1, 2), "does not hold"),
        ({"gla": 0.8, "transformer": 0.9}, (0,), "is undecided"),
        ({"gla": 0.8}, (0, 1, 2), "is undecided"),
    ],
)
def test_mesanet_is_ahead_of_the_rnns_on_regbench(store, others, seeds, verdict: str) -> None:
    for seed in seeds:
        for model, accuracy in ({"mesanet": 0.9} | others).items():
            # Noise that is one model's alone, so that differences have a spread.
            add_regbench(
                store, model, {1000: accuracy - 0.2, 10000: accuracy + 0.002 * (-1) ** seed * (model == "gla")}, seed=seed
            )
    note = said(drawn("figure_9", frames_of(store)), "The paper's claim")
    assert f"claim {verdict} here" in note and "at 10,000 problems" in note


def add_timed(store, slow: dict[str, float], rows=invented.efficiency_rows) -> Frames:
    for model, factor in slow.items():
        for backend, times in (("torch", 3.0), ("triton", 1.0)):
            stages = {"efficiency": rows(store, slow=times * factor, gpu=backend == "triton")}
            store.run(model, "efficiency", stages=stages, group=backend, facts={"backend": backend, "parameters": 10**6})
    return frames_of(store)


def test_speeds_are_of_one_device_and_of_the_fastest_backend(store) -> None:
    def on_both(store, *, slow: float, gpu: bool) -> list[dict]:
        return invented.efficiency_rows(store, slow=slow, gpu=gpu) + (
            invented.efficiency_rows(store, slow=9 * slow) if gpu else []
        )

    frames = add_timed(store, {"gla": 1.0, "gated_deltanet": 1.5, "mesanet": 3.0, "transformer": 2.0}, on_both)
    drawing = drawn("figure_2", frames)
    assert set(drawing.data["device"]) == {"GPU 1"} and set(drawing.data["backend"]) == {"triton"}
    assert "Size tiny, on GPU 1." in drawing.notes
    assert "is undecided here" in said(drawing, "Attention slows with length where MesaNet does not, in training step.")
    generated = said(drawn("figure_6", frames), "GLA generates faster than all others.")
    assert "0.50 times the speed of GATED_DELTANET" in generated


def test_attention_that_slows_with_the_length_is_seen_beyond_the_quartiles(store) -> None:
    def rows(store, *, slow: float, gpu: bool) -> list[dict]:
        found = invented.efficiency_rows(store, slow=slow)
        for row in found:
            longest = row["slice"]["length"] == 256 and row["metric"].startswith("latency_ms")
            row["value"] *= 10.0 if longest and slow in (2.0, 6.0) else 1.0
        return found

    note = said(drawn("figure_2", add_timed(store, {"mesanet": 1.0, "transformer": 2.0}, rows)), "Attention slows")
    assert "holds here" in note and "MESANET keeps 100 %, TRANSFORMER keeps 10 %" in note
