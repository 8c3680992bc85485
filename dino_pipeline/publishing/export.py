"""How are pairs exported in the format of the original DINO?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino_pipeline.errors import DataError, OptionError, stage_call
from dino_pipeline.files import is_there, write_json_lines
from dino_pipeline.options import accepts
from dino_pipeline.publish_options import ExportOptions
from dino_pipeline.run import Run
from dino_pipeline.training.corpus import Source


@dataclass(frozen=True)
class Export:
    """A file that was exported."""

    path: Path
    examples: int

    def __str__(self) -> str:
        return f"{self.path}: {self.examples} examples"


@accepts(ExportOptions)
def export(source: Run | Path | str, **options: Any) -> Export:
    """Write examples as the original DINO's JSONL, with the fields text_a, text_b and label.

    Args:
        source: a run, a data file, or a published dataset, as a folder or a repository on the Hub.

    Raises:
        DataError: the source is missing or cannot be read.
        OptionError: an option is wrong.
    """
    chosen = ExportOptions.of(options)
    name = str(source.path if isinstance(source, Run) else source)
    Run.of(source)  # which names a run without its record
    run, output = Run(Path(name)), chosen.output
    path = run.train if chosen.split == "train" else run.dev
    filtered = run.record().filter if run.is_run else None
    run.check(filtered, path, every_byte=True)  # it leaves the run
    if run.is_run and not path.exists():
        raise DataError(f"{path}: is not there", f"run {stage_call('filter', name)} first")
    if run.path.is_file() and chosen.split != "train":
        raise OptionError(f"{name} is a file and has no splits", "leave it out", option="split", value=chosen.split)
    if is_there(output) and (Run(output.parent).is_run or (run.path.is_file() and output.samefile(run.path))):
        raise OptionError("is read, or is a file of a run", "give another", option="output", value=output)
    label_type = filtered.inputs.label_type if filtered else None
    examples = Source(str(path) if run.is_run else name, split=chosen.split, label_type=label_type).corpus.examples
    write_json_lines(output, ({"text_a": each.text_a, "text_b": each.text_b, "label": each.label} for each in examples))
    return Export(output, len(examples))
