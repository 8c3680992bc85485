"""``python -m dino_pipeline`` is the ``dino`` command."""

from dino_pipeline.cli import main

main(prog_name="dino")
