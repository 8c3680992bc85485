"""The embedded default models, their gold set, and the grammar and scripts that made them."""

from pathlib import Path

_HERE = Path(__file__).parent

GENERATOR = _HERE / "generator"
ENCODER = _HERE / "encoder"
GOLD_TEST = _HERE / "gold" / "test.jsonl"
GOLD_DEV = _HERE / "gold" / "dev.jsonl"
