"""Measurements of speed and memory, each a command that prints ratios taken side by side in one run."""
