"""Paths of the embedded models and of their gold set: graded pairs for testing and for choosing hyper-parameters."""

from dino_pipeline.models import POCKET_FOLDER

GENERATOR = POCKET_FOLDER / "generator"
ENCODER = POCKET_FOLDER / "encoder"
GOLD_TEST = POCKET_FOLDER / "gold" / "test.jsonl"
GOLD_DEV = POCKET_FOLDER / "gold" / "dev.jsonl"
