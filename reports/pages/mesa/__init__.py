"""The parts about the Mesa layer and its solver."""
