"""What every metric is called, in which unit it is, which direction is better: axes and table headers come from here."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """label: for axes and headers. unit: shown in brackets, empty for none. better: "higher", "lower" or "" (a fact).

    short: in the place of a long label where a table has to be narrow, with its unit; empty where label and unit are short.
    decided_by: "training", whose seeds differ by chance; "count", which is exact; or a machine's "clock".

    limits: (low, high) of the axis, None where the data decide. digits: after the decimal point in tables.
    judges: whether a run that has this metric is judged by it, see `suite.scores`. floors: the metrics in the same unit that
    are known without training a model.
    """

    name: str
    label: str
    unit: str = ""
    better: str = ""
    limits: tuple[float | None, float | None] = (None, None)
    digits: int = 3
    judges: bool = False
    floors: tuple[str, ...] = ()
    short: str = ""
    decided_by: str = "training"

    @property
    def bounds(self) -> tuple[float, float]:
        """The limits as numbers."""
        low, high = self.limits
        return -math.inf if low is None else low, math.inf if high is None else high

    @property
    def learnt_or_not(self) -> bool:
        """Whether it is a share of what is right: a seed has learnt the task or has not, and few lie between."""
        return self.limits == (0.0, 1.0) and self.better == "higher"


METRICS = {
    metric.name: metric
    for metric in (
        Metric("nll", "NLL", "nats/token", "lower"),
        Metric("nll_so_far", "mean NLL so far", "nats/token", "lower", short="NLL so far"),
        Metric("perplexity", "perplexity", "", "lower", (1.0, None), 2, short="ppl"),
        Metric(
            "bits_per_byte",
            "bits per byte",
            "",
            "lower",
            (0.0, None),
            judges=True,
            floors=("unigram_bits_per_byte", "trigram_bits_per_byte"),
            short="bits/byte",
        ),
        Metric("unigram_bits_per_byte", "unigram floor", "", "lower", (0.0, None)),
        Metric("trigram_bits_per_byte", "trigram floor", "", "lower", (0.0, None)),
        Metric("accuracy", "accuracy", "", "higher", (0.0, 1.0), judges=True, floors=("chance",), short="acc."),
        Metric("accuracy_macro", "accuracy, mean over targets", "", "higher", (0.0, 1.0), short="macro acc."),
        Metric("next_token_accuracy", "accuracy of the very next token", "", "higher", (0.0, 1.0), short="next-token acc."),
        Metric("entropy_nll", "entropy of the next token", "nats/token", "lower", (0.0, None), short="entropy"),
        Metric("ngram1_accuracy", "in-context 1-gram floor", "", "higher", (0.0, 1.0), short="1-gram"),
        Metric("ngram2_accuracy", "in-context 2-gram floor", "", "higher", (0.0, 1.0), short="2-gram"),
        Metric("ngram3_accuracy", "in-context 3-gram floor", "", "higher", (0.0, 1.0), short="3-gram"),
        Metric("ngram4_accuracy", "in-context 4-gram floor", "", "higher", (0.0, 1.0), short="4-gram"),
        Metric("accuracy_norm", "length-normalised accuracy", "", "higher", (0.0, 1.0), short="norm. acc."),
        Metric("accuracy_per_token", "accuracy, likelihood per token", "", "higher", (0.0, 1.0), short="acc. per token"),
        Metric("exact_match", "exact match", "", "higher", (0.0, 1.0)),
        Metric("contains", "contains the answer", "", "higher", (0.0, 1.0)),
        Metric("bleu", "BLEU", "", "higher", (0.0, 100.0), 1),
        Metric("truncated", "share of requests cut", "", "", (0.0, 1.0)),
        Metric("left_out", "share of documents too long", "", "", (0.0, 1.0)),
        Metric("chance", "chance", "", "", (0.0, 1.0)),
        Metric("reachable_accuracy", "best possible in the window", "", "", (0.0, 1.0)),
        Metric("solver_steps", "solver steps", "", "lower", (0.0, None), 2, short="steps"),
        Metric("solver_chunk_steps", "solver steps of a chunk", "", "lower", (0.0, None), 2, short="steps/chunk"),
        Metric("solver_residual", "residual of the solver", "", "lower", (0.0, None), 6, short="residual"),
        Metric("relative_time", "relative time", "", "lower", (0.0, None), 2, short="rel. time", decided_by="clock"),
        Metric("microseconds_per_token", "time per token", "µs", "lower", (0.0, None), 1, short="µs/token", decided_by="clock"),
        Metric("beta", "input gate beta", "", "", (0.0, 1.0), short="beta"),
        Metric("gamma", "forget gate gamma", "", "", (None, 1.0), 4, short="gamma"),
        Metric("regularizer", "Lambda", "", "", (0.0, None)),
        Metric("condition", "condition number", "", "lower", (1.0, None), 1, short="cond."),
        Metric("readout_cosine", "cosine of solved and unsolved read-out", "", "", (None, 1.0), short="cosine"),
        Metric("readout_error", "relative error of the read-out", "", "lower", (0.0, None), 6, short="error"),
        Metric("readout_error_worst", "worst relative error of the read-out", "", "lower", (0.0, None), 6, short="worst error"),
        Metric("nll_without_run", "NLL without the run", "nats/token", "lower"),
        Metric("finite", "share of finite logits", "", "higher", (0.0, 1.0), short="finite"),
        Metric("largest_readout", "largest read-out", "", "", (0.0, None), 1, short="largest"),
        Metric("indefinite", "share of tokens with an indefinite H + Lambda", "", "lower", (0.0, 1.0), 4),
        Metric("smallest_eigenvalue", "smallest eigenvalue of H + Lambda", "", "", (None, None), 2),
        Metric(
            "squared_error",
            "squared error",
            "",
            "lower",
            (0.0, None),
            judges=True,
            floors=("zero_error", "ridge_error", "bayes_error"),
            short="sq. error",
        ),
        Metric("bayes_error", "squared error of the best answer", "", "lower", (0.0, None)),
        Metric("ridge_error", "squared error of exact ridge regression", "", "lower", (0.0, None)),
        Metric("zero_error", "squared error of answering 0", "", "lower", (0.0, None)),
        Metric("operator_error", "squared error of the op that is told where W is redrawn", "", "lower", (0.0, None)),
        Metric("forgetting_error", "squared error of the op that is told nothing", "", "lower", (0.0, None)),
        Metric("floored_error", "squared error of the op at the layer's Lambda floor", "", "lower", (0.0, None)),
        Metric("operator_decay", "gamma of the op", "", "", (0.0, 1.0), 2),
        Metric("forgetting_decay", "gamma of the op that is told nothing", "", "", (0.0, 1.0), 2),
        Metric("floored_decay", "gamma of the op at the layer's Lambda floor", "", "", (0.0, 1.0), 2),
        Metric("train_loss", "training loss", "nats/token", "lower", short="loss"),
        Metric("gradient_norm", "norm of the gradient", "", "", (0.0, None), short="grad. norm"),
        Metric("steps_taken", "steps trained", "", "", (0.0, None), 0),
        Metric("step_kept", "step whose weights are kept", "", "", (0.0, None), 0),
        Metric("tokens_per_second", "training speed", "tokens/s", "higher", (0.0, None), 0, short="tokens/s", decided_by="clock"),
        Metric("mfu", "model FLOPs utilisation", "", "higher", (0.0, 1.0), short="MFU", decided_by="clock"),
        Metric("skipped_steps", "steps left out", "", "lower", (0.0, None), 0),
        Metric("train_seconds", "training time", "s", "lower", (0.0, None), 1, short="train [s]", decided_by="clock"),
        Metric("overhead", "time outside forward, backward and optimiser", "", "lower", (0.0, 1.0), decided_by="clock"),
        Metric("latency_ms", "time", "ms", "lower", (0.0, None), 2, short="ms", decided_by="clock"),
        Metric("latency_ms_low", "first quartile of the time", "ms", "lower", (0.0, None), 2, decided_by="clock"),
        Metric("latency_ms_high", "third quartile of the time", "ms", "lower", (0.0, None), 2, decided_by="clock"),
        Metric("cold_ms", "first call", "ms", "lower", (0.0, None), 1, short="first [ms]", decided_by="clock"),
        Metric("throughput", "throughput", "tokens/s", "higher", (0.0, None), 0, short="tokens/s", decided_by="clock"),
        Metric("floor_ms", "least time by the roofline", "ms", "", (0.0, None), 3, decided_by="clock"),
        Metric(
            "roofline_fraction", "share of the roofline reached", "", "higher", (0.0, 1.0), short="roofline", decided_by="clock"
        ),
        Metric("work_flops", "FLOPs", "", "lower", (0.0, None), 0, decided_by="count"),
        Metric("least_bytes", "fewest bytes moved", "bytes", "lower", (0.0, None), 0, decided_by="count"),
        Metric("peak_memory_bytes", "peak memory", "bytes", "lower", (0.0, None), 0, short="memory [B]", decided_by="count"),
        Metric("matmul_flops_per_second", "FLOP/s of a matrix product", "1/s", "", (0.0, None), 0, decided_by="clock"),
        Metric("copy_bytes_per_second", "bytes/s of a copy", "1/s", "", (0.0, None), 0, decided_by="clock"),
        Metric("missing_data", "missing data"),
        Metric("out_of_memory", "out of memory"),
        Metric("not_captured", "no CUDA graph"),
        Metric("parameters", "parameters", "", "", (0.0, None), 0, short="params", decided_by="count"),
        Metric("state_bytes", "state", "bytes", "lower", (0.0, None), 0, short="state [B]", decided_by="count"),
        Metric(
            "measured_flops_per_token",
            "forward FLOPs per token",
            "",
            "lower",
            (0.0, None),
            0,
            decided_by="count",
            short="FLOPs/token",
        ),
        Metric(
            "flops_per_token",
            "most forward FLOPs per token",
            "",
            "lower",
            (0.0, None),
            0,
            short="max. FLOPs/token",
            decided_by="count",
        ),
        Metric("scored_tokens", "scored tokens of a document", "", "", (0.0, None), 0, short="tokens", decided_by="count"),
        Metric("short_documents", "documents too short", "", "", (0.0, None), 0, short="too short", decided_by="count"),
    )
}


def short_label(name: str) -> str:
    """The shortest that says which metric it is, its unit within it; what `axis_label` says where there is nothing shorter."""
    metric = METRICS.get(name)
    return metric.short if metric and metric.short else axis_label(name)


def axis_label(name: str) -> str:
    """The label of a metric with its unit in brackets; a name that is not in the table stands for itself."""
    metric = METRICS.get(name)
    if metric is None:
        return name.replace("_", " ")
    return f"{metric.label} [{metric.unit}]" if metric.unit else metric.label
