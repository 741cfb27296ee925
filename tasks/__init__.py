"""What the models are compared on: data, targets and scores; one family per file."""
