"""RegBench: languages that are met for the first time in the context, their automata, strings, task and n-gram floors."""
