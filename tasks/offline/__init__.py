"""The `offline` benchmarks: ordinary lm-eval tasks over held-out prose of the installed Python."""
