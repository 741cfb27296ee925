"""The tables and figures of a published study, ours beside what it prints."""
