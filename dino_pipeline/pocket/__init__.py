"""Paths of the embedded models and of their gold set: graded pairs for testing and for choosing hyper-parameters."""

from pathlib import Path

_HERE = Path(__file__).parent

GENERATOR = _HERE / "generator"
ENCODER = _HERE / "encoder"
GOLD_TEST = _HERE / "gold" / "test.jsonl"
GOLD_DEV = _HERE / "gold" / "dev.jsonl"
