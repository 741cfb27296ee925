"""What synthetic tasks share: examples in blocks, splits by a hash, drawing without replacement, the best possible answers."""
