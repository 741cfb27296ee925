"""What is compared: one backbone, one file per architecture, pure tensor code."""
