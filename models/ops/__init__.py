"""One recurrence per file in plain PyTorch: the ground truth and the CPU backend.

Legend of the letters used here and nowhere else: B batch, T time, H heads, K key dim, V value dim, C chunk.
"""
