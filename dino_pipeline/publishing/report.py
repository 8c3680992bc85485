"""How does a run become one self-contained HTML page, with a PNG of each picture?"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino_pipeline import __version__
from dino_pipeline.cards.document import Block, Picture, Section, number, read_template, render_html, visible
from dino_pipeline.errors import PYTHON, Wording, worded
from dino_pipeline.evaluation.evaluate import Candidate, candidates_of
from dino_pipeline.files import write_bytes
from dino_pipeline.measures import measure_title
from dino_pipeline.options import accepts
from dino_pipeline.progress import Progress, Reporter, reporter_for
from dino_pipeline.publish_options import ReportOptions
from dino_pipeline.publishing import report_data, report_model
from dino_pipeline.publishing.report_source import OpenedRun, ReportSource, RunTexts, SectionMissing
from dino_pipeline.record import public_record
from dino_pipeline.run import Run

SECTIONS: Sequence[tuple[str, str, Callable[[ReportSource], list[Block]]]] = (
    ("spec", "Task spec and prompts", report_data.spec),
    ("generation", "Generation", report_data.generation),
    ("funnel", "Filter", report_data.funnel),
    ("balance", "Label balance", report_data.balance),
    ("similarity", "Similarity within pairs", report_data.similarity),
    ("lengths", "Lengths", report_data.lengths),
    ("diversity", "Duplicates and diversity", report_data.diversity),
    ("contamination", "Evaluation data", report_data.contamination),
    ("training", "Training", report_model.training),
    ("scores", "Scores", report_model.scores),
    ("comparison", "Objectives compared", report_model.comparison),
    ("samples", "Samples", report_data.samples),
    ("lineage", "Lineage", report_model.lineage),
)
"""Id, title, and the function that returns the blocks, in the order of the page."""


@dataclass(frozen=True)
class MissingSection:
    """A section that the report leaves out."""

    title: str
    reason: str
    remedy: str = ""
    """A template of `errors.worded`."""

    def worded(self, wording: Wording) -> str:
        """Return reason and remedy for one kind of caller."""
        return "; ".join(part for part in (self.reason, worded(self.remedy, wording)) if part)

    def __str__(self) -> str:
        return f"{self.title}: {self.worded(PYTHON)}"


@dataclass(frozen=True)
class Report:
    """A written report."""

    path: Path
    """The page."""
    pictures: list[Path]
    sections: dict[str, Section]
    """By id."""
    missing: list[MissingSection]

    def __repr__(self) -> str:
        left_out = f", without {', '.join(section.title for section in self.missing)}" if self.missing else ""
        return f"Report({self.path}: {len(self.sections)} sections{left_out})"


@accepts(ReportOptions)
def report(
    run: Run | Path | str, *, progress: bool | Callable[[Progress | str], object] | Reporter = True, **options: Any
) -> Report:
    """Write report.html, a page that needs no other file, and its pictures as PNG.

    Args:
        run: the run to report on.
        progress: True shows progress; a function is called with it.

    Raises:
        DataError: a file of the run cannot be read.
        OptionError: an option is wrong.
        RunError: the folder is not a run.
    """
    chosen = ReportOptions.of(options)
    with OpenedRun.locked(run) as opened, reporter_for(progress) as reporter:
        return write_report(opened, report_candidates(opened, chosen.encoder), reporter)


def write_report(
    opened: OpenedRun, candidates: Sequence[Candidate], reporter: Reporter, *, dropped: bool = True
) -> Report:
    """Write a run's report and its pictures.

    Args:
        opened: the run to report on.
        candidates: encoders that show how similar the texts of each label are.
        reporter: follows the sections.
        dropped: False keeps dropped texts out of the samples.

    Raises:
        DataError: a file of the run cannot be read.
    """
    run = opened.run
    with run.scratch("report") as folder, closing(RunTexts(run, folder)) as texts:
        record = public_record(opened.record)
        source = ReportSource(run, record, opened.spec, texts, candidates, reporter, dropped)
        sections, missing = _sections(source)
        html = _html(source, sections, missing)
    write_bytes(run.report, html.encode("utf-8", "replace"))
    pictures = [block for section in sections for block in section.blocks if isinstance(block, Picture)]
    written = _write_pictures(run, pictures)
    return Report(run.report, written, {section.id: section for section in sections}, missing)


def report_candidates(opened: OpenedRun, encoders: Sequence[str]) -> list[Candidate]:
    """Return the encoders that a report compares: the named ones, else the run's before and after training."""
    finetuned = opened.record.finetune
    names = encoders or ([str(opened.run.path)] if finetuned and finetuned.is_done else [])
    return [candidate for name in names for candidate in candidates_of(name)]


def _sections(source: ReportSource) -> tuple[list[Section], list[MissingSection]]:
    sections: list[Section] = []
    missing: list[MissingSection] = []
    progress = Progress("report: sections", total=len(SECTIONS))
    for name, title, blocks_of in SECTIONS:
        try:
            sections.append(Section(name, title, blocks_of(source)))
        except SectionMissing as error:
            missing.append(MissingSection(title, error.reason, error.remedy))
        progress.done += 1
        source.reporter.update(progress)
    return sections, missing


def _write_pictures(run: Run, pictures: Sequence[Picture]) -> list[Path]:
    """Write the PNG copies, and delete those that an earlier report left behind."""
    contents = {run.pictures / f"{picture.name}.png": picture.png for picture in pictures}
    for path in run.pictures.glob("*.png"):
        if path not in contents:
            path.unlink()
    for path, png in contents.items():
        write_bytes(path, png)
    return list(contents)


def _html(source: ReportSource, sections: Sequence[Section], missing: Sequence[MissingSection]) -> str:
    script = read_template("page.js")
    return render_html(
        "page.html.j2",
        name=visible(source.run.path.resolve().name, 120),
        language=(source.spec.language if source.spec else None) or "en",
        headline=_headline(source),
        sections=sections,
        missing=missing,
        version=__version__,
        style=read_template("page.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _headline(source: ReportSource) -> list[tuple[str, str]]:
    """Return the figures at the top of the page."""
    record = source.record
    counts = source.texts.counts("kept")
    headline = []
    if counts:
        unit = "pairs" if source.texts.paired else "texts"
        headline += [(unit, number(sum(counts.values()))), ("labels", str(len(counts)))]
    if record.generate:
        headline.append(("written by", visible(Path(record.generate.options.model.name).name, 60)))
    finetuned = record.finetune
    if finetuned and finetuned.is_done and finetuned.selection:
        encoder, selection = finetuned.options.encoder, finetuned.selection
        headline.append(("encoder", visible(Path(encoder.name).name, 60)))
        headline.append((f"best dev {measure_title(selection.measure)}", number(selection.best)))
    return headline
