"""State tracking: tokens change a state, which is asked: elements of groups, sums, stacks, states of a grammar."""
