"""The benchmarks of the MesaNet paper (arXiv 2506.05233, sec. 4): groups of lm-eval's tasks, and some that it lacks."""
