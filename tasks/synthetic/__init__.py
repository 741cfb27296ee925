"""What the synthetic tasks share: examples in blocks, splits by a hash, drawing, and the best answers that there are."""
