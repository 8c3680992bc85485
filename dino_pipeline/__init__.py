"""Labelled text pairs from instructions, and the sentence encoders trained on them."""

__version__ = "0.1.0"
