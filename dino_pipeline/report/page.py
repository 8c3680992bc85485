"""Puts the report together: its sections, one HTML file that needs nothing else, and a PNG of each picture."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from dino_pipeline import __version__
from dino_pipeline.evaluation.candidates import Candidate
from dino_pipeline.files import write_bytes
from dino_pipeline.measures import measure_title
from dino_pipeline.progress import Progress, Reporter
from dino_pipeline.report import of_data, of_model
from dino_pipeline.report.blocks import Block, Missing, Picture, Section, number, visible
from dino_pipeline.report.material import Material
from dino_pipeline.report.texts_of_run import TextsOfRun
from dino_pipeline.run import Run

SECTIONS: Sequence[tuple[str, str, Callable[[Material], list[Block]]]] = (
    ("spec", "Task spec and prompts", of_data.spec),
    ("generation", "Generation", of_data.generation),
    ("funnel", "Filter", of_data.funnel),
    ("balance", "Label balance", of_data.balance),
    ("similarity", "Similarity within pairs", of_data.similarity),
    ("lengths", "Lengths", of_data.lengths),
    ("diversity", "Duplicates and diversity", of_data.diversity),
    ("contamination", "Evaluation data", of_data.contamination),
    ("training", "Training", of_model.training),
    ("scores", "Scores", of_model.scores),
    ("comparison", "Objectives compared", of_model.comparison),
    ("samples", "Samples", of_data.samples),
    ("lineage", "Lineage", of_model.lineage),
)


@dataclass(frozen=True)
class Report:
    """What was written, beside the page."""

    pictures: list[Path]
    sections: dict[str, Section]
    """By id."""
    missing: list[tuple[str, str]]
    """Titles of the sections that are left out, each with the reason."""


def report(run: Run, candidates: Sequence[Candidate], reporter: Reporter, *, dropped: bool = True) -> Report:
    """Write a run's report and its pictures.

    Args:
        run: what to report on.
        candidates: encoders that show how labels lie apart.
        reporter: is told how far it is.
        dropped: whether its samples show what was dropped, too.

    Raises:
        DataError: a file of the run cannot be read.
    """
    with run.scratch("report") as folder, closing(TextsOfRun(run, folder)) as texts:
        material = Material(run, texts, candidates, reporter, dropped)
        found, missing = _sections(material)
        html = _html(material, found, missing)
    write_bytes(run.report, html.encode("utf-8", "replace"))
    pictures = [block for section in found for block in section.blocks if isinstance(block, Picture)]
    return Report(_write_pictures(run, pictures), {section.id: section for section in found}, missing)


def _sections(material: Material) -> tuple[list[Section], list[tuple[str, str]]]:
    """Return the sections that there is something for, and the others with the reason."""
    found, missing = [], []
    progress = Progress("report: sections", total=len(SECTIONS))
    for name, title, make in SECTIONS:
        try:
            found.append(Section(name, title, make(material)))
        except Missing as error:
            missing.append((title, str(error)))
        progress.done += 1
        material.reporter.update(progress)
    return found, missing


def _write_pictures(run: Run, pictures: Sequence[Picture]) -> list[Path]:
    """Write the PNG copies, and remove those of sections that are gone."""
    paths = {run.pictures / f"{each.name}.png": each.png for each in pictures}
    for path in run.pictures.glob("*.png"):
        if path not in paths:
            path.unlink()
    for path, png in paths.items():
        write_bytes(path, png)
    return list(paths)


def _html(material: Material, sections: Sequence[Section], missing: Sequence[tuple[str, str]]) -> str:
    source = files("dino_pipeline.report")
    style, script = ((source / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((source / "page.html.j2").read_text(encoding="utf-8"))
    return template.render(
        name=visible(material.run.path.resolve().name, 120),
        language=material.run.spec_fields().get("language") or "en",
        headline=_headline(material),
        sections=sections,
        missing=missing,
        version=__version__,
        style=style,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _headline(material: Material) -> list[tuple[str, str]]:
    records = material.records
    counts = material.texts.counts("kept")
    found = []
    if counts:
        unit = "pairs" if material.texts.paired else "texts"
        found += [(unit, number(sum(counts.values()))), ("labels", str(len(counts)))]
    if model := records.get("generate", {}).get("options", {}).get("model"):
        found.append(("written by", visible(Path(str(model)).name, 60)))
    trained = records.get("finetune", {})
    if trained.get("status") == "done":
        chosen = trained["selection"]
        found.append(("encoder", visible(Path(trained["options"]["encoder"]).name, 60)))
        found.append((f"best dev {measure_title(chosen['measure'])}", number(chosen["best"])))
    return found
