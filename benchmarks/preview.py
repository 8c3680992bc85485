"""Is a preview's estimate right? Each time a preview and then the run itself, as processes of their own.

    python -m benchmarks.preview [--times 3] [--num-inputs 134]

The bar is an estimate within 30 % of the wall time of a run of 2,000 samples.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.decoder import machine
from dino_pipeline.console import table

SPECS = Path(__file__).parent.parent / "task_specs"


def main() -> None:
    """Print estimates beside real times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--num-inputs", default="134")
    told = parser.parse_args()
    rows = []
    for _ in range(told.times):
        with tempfile.TemporaryDirectory() as folder:
            job = [f"{SPECS / 'sts-x2.json'}", "--run", folder, "--num-inputs", told.num_inputs]
            taken = []
            for command in ("preview", "generate"):
                begun = time.monotonic()
                subprocess.run([sys.executable, "-m", "dino_pipeline", command, *job], check=True, capture_output=True)
                taken.append(time.monotonic() - begun)
            estimate = json.loads((Path(folder) / "estimate.json").read_text())["seconds"]
        previewed, real = taken
        rows.append([f"{estimate:.1f}", f"{real:.1f}", f"{estimate / real:.2f}", f"{previewed:.1f}"])
    print(machine("cpu"))
    print(table(["estimated s", "real s", "ratio", "the preview took"], rows))


if __name__ == "__main__":
    main()
