"""Recall: what is asked stands in the sequence, once: copies in reverse, a needle among filler, steps along a cycle."""
