"""The parts that a report may name, one subject a file: pure functions of the frames."""
