"""What the report of efficiency draws and says."""

from __future__ import annotations

import pytest
import torch
from invented import efficiency_rows

from reports.kit.parts import Frames, NoData, load_frames
from reports.kit.style import backend_dashes
from reports.pages.efficiency import Panel, costs, lines, measured, scan
from suite.cli import main
from suite.evaluation.studies.roofline import Ceilings

WORKS = ["layer forward", "training step", "prefill", "decode"]


@pytest.fixture
def timed(store) -> Frames:
    """Gated DeltaNet twice as slow as MesaNet."""
    for model, slow in (("mesanet", 1.0), ("gated_deltanet", 2.0)):
        store.run(model, "efficiency", stages={"efficiency": efficiency_rows(store, slow=slow)})
    store.request()
    return load_frames(store.root, "quick")


@pytest.fixture
def on_a_gpu(store) -> Frames:
    """MesaNet by two backends, one of which has no room to decode at 256."""
    for backend, gpu in (("triton", False), ("torch", True)):
        stages = {"efficiency": [row | {"slice": row["slice"] | {"device": "GPU 1"}} for row in efficiency_rows(store, gpu=gpu)]}
        store.run("mesanet", "efficiency", group=backend, stages=stages, facts={"backend": backend}, varied={"backend": backend})
    store.request()
    return load_frames(store.root, "quick")


def test_throughput_counts_every_token_read_and_one_a_sequence_decoded(timed) -> None:
    data = measured(timed)
    mesa = data[(data["model"] == "mesanet") & data["latency_ms"].notna()]
    assert set(mesa["work"]) > set(WORKS) and mesa["throughput"].to_numpy() == pytest.approx(1e6)


def test_a_scan_holds_the_tokens_or_what_most_prompts_share(timed) -> None:
    data = measured(timed)
    assert scan(data, work="training step", along="length")[1] == "512 tokens"
    rows, common = scan(data, work="decode", along="length")
    assert common == "4 sequences" and set(rows["batch"]) == {4} and set(rows["length"]) == {64, 256}
    rows, common = scan(data, work="decode", along="batch")
    assert common == "prompts of 64 tokens" and set(rows["batch"]) == {1, 4, 16}
    with pytest.raises(NoData, match="sleeping"):
        scan(data, work="sleeping", along="length")


def test_lines_are_medians_with_quartiles_in_the_unit_shown(timed) -> None:
    panels = [
        Panel(work="layer forward", along="length", shows="latency_ms"),
        Panel(work="decode", along="batch", shows="throughput"),
    ]
    drawing = lines(timed, panels=panels)
    left, right = drawing.figure.axes
    assert left.get_title() == "layer forward, 512 tokens" and left.get_yscale() == right.get_yscale() == "log"
    gated, mesa = left.containers
    assert mesa[0].get_ydata() == pytest.approx([0.512] * 2) and gated[0].get_ydata() == pytest.approx([1.024] * 2)
    (bars,) = mesa[2]
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [pytest.approx([0.8 * 0.512, 2 * 0.512])] * 2
    (bars,) = right.containers[1][2]
    # A slower quartile is a smaller throughput.
    assert bars.get_segments()[0][:, 1].tolist() == pytest.approx([1e6 / 2, 1e6 / 0.8])
    assert drawing.notes == ("Measured on CPU, 1 thread. Bars span the quartiles.",)


def test_backends_have_a_line_style_each_and_the_missing_is_named(on_a_gpu) -> None:
    drawing = lines(on_a_gpu, panels=[Panel(work="decode", along="length", shows="latency_ms")])
    styles = {bars.get_label(): bars[0].get_linestyle() for bars in drawing.figure.axes[0].containers}
    assert styles == {"MESANET, torch": backend_dashes("torch"), "MESANET, triton": backend_dashes("triton")}
    assert len(set(styles.values())) == 2
    assert drawing.notes[1:] == (
        "Lines by backend: torch dotted, triton solid.",
        "Out of memory: MESANET, torch in decode at 4 x 256.",
    )


def test_costs_are_those_of_the_greatest_length(on_a_gpu) -> None:
    table = costs(on_a_gpu, works=WORKS)
    cells = {(row[0].text, row[1].text): [cell.text for cell in row[2:]] for row in table.rows}
    assert cells[("layer forward", "MESANET, torch")] == [
        "torch",
        "2 x 256",
        "0.512 [0.410, 1.02]",
        "5.12",
        "1,000,000",
        "25.0",
        "3.00",
    ]
    assert cells[("decode", "MESANET, torch")][2] == "out of memory"
    # Peak memory that was not measured is no 0.
    assert cells[("decode", "MESANET, triton")][1:] == ["4 x 256", "0.004 [0.003, 0.008]", "0.040", "1,000,000", "25.0", "–"]
    assert table.notes[0].startswith(
        "Measured on GPU 1: a large matrix product 788 TFLOP/s in the runs' precision, a copy 4,300 GB/s"
    )
    assert not any("seed" in note for note in table.notes)


def test_without_the_stage_there_is_nothing_to_show(store) -> None:
    store.run("mesanet", "efficiency", stages={"train": [store.row("nll", 1.0, "validation")]})
    store.request()
    with pytest.raises(NoData, match="stage efficiency"):
        costs(load_frames(store.root, "quick"), works=WORKS)


def test_what_is_trained_in_two_ways_is_two_arms(tmp_path, monkeypatch) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda form, **settings: compiled.append(form) or form)
    monkeypatch.setattr("suite.evaluation.studies.timing.TIMED_SECONDS", 0.0)
    monkeypatch.setattr("suite.evaluation.studies.efficiency.measured_ceilings", lambda device, dtype: Ceilings(1e9, 1e9))
    size = [f"size.{name}" for name in ("d_model=16", "num_blocks=1", "num_heads=2", "head_dim=8", "mlp_dim=16")]
    timed = ["eval.study_tokens=16", "eval.timed_lengths=[16]", "eval.prompt_lengths=[8]", "eval.decode_batch_sizes=[1]"]
    ways = ["compute.compile=false,true", "compute.cuda_graph=auto,false", "compute.activation_checkpointing=none,blocks"]
    request = ["experiment=efficiency", "model=gla", "match.by=none", *size, *timed, *ways, f"paths.results={tmp_path}"]
    assert main(["run", *request, "compute.device=cpu"]) == 0
    frames = load_frames(tmp_path, "efficiency")
    data = measured(frames)
    for work, asked in (("training step", 8), ("forward", 8), ("layer forward", 1), ("decode", 1)):
        rows = data[data["work"] == work]
        assert len(rows) == rows["arm"].nunique() == asked, work
        assert rows["latency_ms"].notna().all()
    arms = set(data.loc[data["work"] == "training step", "arm"])
    assert {"GLA", "GLA, compiled", "GLA, eager", "GLA, compiled, eager, checkpointed"} < arms
    # Embedding, block and last norm, for forward and backward and for the step, in half of all ways.
    assert len(compiled) == 3 * 2 * 4
    assert len(costs(frames, works=["training step"]).rows) == 8


def test_what_was_measured_before_a_setting_was_is_shown(store) -> None:
    for model, said in (("mesanet", {}), ("gated_deltanet", {"compiled": 0, "cuda_graph": "auto", "checkpointed": 0})):
        rows = efficiency_rows(store)
        rows = [row | {"slice": {k: v for k, v in row["slice"].items() if k != "compiled"} | said} for row in rows]
        store.run(model, "efficiency", stages={"efficiency": rows})
    store.request()
    assert set(measured(load_frames(store.root, "quick"))["model"]) == {"mesanet", "gated_deltanet"}
