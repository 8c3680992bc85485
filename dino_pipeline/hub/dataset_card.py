"""What a dataset's card says: what it is and is not, how it was made, how to load it, and what nobody has checked."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dino_pipeline.filtering.text_rules import WITHHELD_REASONS
from dino_pipeline.funnel import Funnel
from dino_pipeline.hub.licenses import GeneratorLicense
from dino_pipeline.hub.markdown import fenced, markdown, plain, samples, table
from dino_pipeline.hub.tables import Shape
from dino_pipeline.hub.upload import address
from dino_pipeline.public import public
from dino_pipeline.report.blocks import Samples
from dino_pipeline.report.page import Report
from dino_pipeline.run import Run

SHOWN = 3
"""Samples of each label."""
NO_OPTIONS = (
    *("hygiene", "numeric_labels", "source", "excluded", "custom_digest", "semantic_fingerprint"),
    *("stop", "fields"),
)
"""What is recorded with the filter's options and was not asked for."""
CITATION = """@inproceedings{schick-schutze-2021-generating,
  title     = {Generating Datasets with Pretrained Language Models},
  author    = {Schick, Timo and Sch{\\"u}tze, Hinrich},
  booktitle = {Proceedings of EMNLP},
  year      = {2021},
  url       = {https://arxiv.org/abs/2104.07540}
}"""


@dataclass(frozen=True)
class Again:
    """How a dataset is made again."""

    commands: Sequence[Sequence[str]] = ()
    """To be given in the published folder; none where the texts came from a file."""
    needs_inputs: bool = False
    """Whether they read ``inputs.jsonl``."""
    lacks: Sequence[str] = ()
    """What they need and the published folder does not hold."""


@dataclass(frozen=True)
class Publication:
    """What a user wants of a published dataset."""

    repository: str
    """``user/name``."""
    license: str | None
    raw: bool
    model_repository: str | None
    """Where the encoder is published, if it is."""
    generator: GeneratorLicense | None
    """None where no generator wrote the texts."""
    again: Again


def body(run: Run, publication: Publication, report: Report, shape: Shape, rows: Mapping[str, int]) -> str:
    """Return the card's text as Markdown."""
    parts = [
        f"# {publication.repository.rpartition('/')[2]}",
        _what(run, publication, rows),
        *([publication.generator.said] if publication.generator else []),
        _load(publication, rows),
        *_prompts(report),
        _labels(run, shape),
        _made(run),
        *_sections(run, report),
        _samples(report),
        _again(publication),
        _limits(run, publication),
        f"## Citation\n\n{fenced(CITATION, 'bibtex')}",
    ]
    return "\n\n".join(parts)


def _what(run: Run, publication: Publication, rows: Mapping[str, int]) -> str:
    spec, generated = run.spec_fields(), public(run.stage("generate").get("options", {}))
    description = f"{plain(spec['description'])}\n\n" if spec.get("description") else ""
    counts = table(["configuration", "split", "rows"], [[*name.split("/"), str(count)] for name, count in rows.items()])
    encoder = publication.model_repository
    model = f"\n\nThe encoder [{encoder}]({address(encoder, 'model')}) was trained on it." if encoder else ""
    if not generated:
        said = "Texts with labels, brought as a file and filtered with dino_pipeline, to train sentence encoders on."
        return f"{description}{said}\n\n{counts}{model}"
    return (
        f"{description}Synthetic texts with labels, written by `{plain(str(generated['model']))}` and filtered with "
        "dino_pipeline, to train sentence encoders on. It is no benchmark: nobody has looked at the texts, and a label "
        f"is wrong wherever the generator did not follow its instruction.\n\n{counts}{model}"
    )


def _load(publication: Publication, rows: Mapping[str, int]) -> str:
    configurations = list(dict.fromkeys(name.split("/")[0] for name in rows))
    code = (
        "from datasets import load_dataset\n\n"
        f'dataset = load_dataset("{publication.repository}")\n'
        'print(dataset["train"][0])'
    )
    others = [f'`load_dataset("{publication.repository}", "{name}")`' for name in configurations if name != "default"]
    more = f"\n\nWith provenance: {', '.join(others)}." if others else ""
    return f"## Load it\n\n{fenced(code, 'python')}{more}"


def _prompts(report: Report) -> list[str]:
    section = report.sections.get("spec")
    return [f"## Prompts\n\n{markdown(section)}"] if section else []


def _labels(run: Run, shape: Shape) -> str:
    """Return what a label says, and what the filter made of the instructions' labels."""
    options = run.stage("filter")["options"]
    said = ["A label says which instruction a text was written for."] if run.stage("generate") else []
    if shape.classes is None and options["labels"] == "smoothed" and options["smoothing"]:
        share = options["smoothing"]
        said.append(
            f"Scores are smoothed: each is pulled by {share:g} towards the middle of the scale (on one from 0 to 1, 1 "
            f"becomes {1 - share / 2:g} and 0 becomes {share / 2:g})."
        )
    if options["labels"] == "posterior":
        said.append(
            "Scores are the mean label by how likely the generator finds a text under each label's instruction."
        )
    if extra := Funnel.of(run.record().filter).total("added", "random pairs"):
        said.append(f"{extra} of the pairs were written by nobody: they join texts at random, with score 0.")
    return f"## Labels\n\n{' '.join(said) or 'Labels are as they came.'}"


def _made(run: Run) -> str:
    generated = public(run.stage("generate"))
    if not generated:
        return "## How it was made\n\nThe texts were brought as a file and filtered."
    options, scorer = generated["options"], scorer_of(generated["options"])
    named = {
        "generator": options["model"],
        "revision": options["revision"],
        "commit": generated.get("model_commit"),
        "weights (digest)": options["fingerprint"],
        "spec (digest)": options["spec"],
        "inputs": generated.get("inputs"),
        "texts per input and label": options["samples"],
        **options["sampling"],
        "seed": options["seed"],
        **{name: options.get(name) for name in ("dtype", "chat", "adapter", "quantize", "engine", "best_of")},
        **generated.get("server", {}),
        "scorer": scorer,
    }
    rows = [[str(name).replace("_", " "), str(value)] for name, value in named.items() if value is not None]
    said = "Sampled under each label's own instruction, without contrast."
    if (best_of := options.get("best_of")) and scorer:
        said = (
            f"Sampled under each label's own instruction; of {best_of} texts the one was kept that is likelier under "
            "it than under the counter-labels' by the largest margin."
        )
    if options["sampling"]["decay"]:
        said = (
            "Sampled with self-debiasing (Schick & Schütze 2021): a text is likely under its own instruction and "
            "unlikely under those of its counter-labels."
        )
    if options["model"] == "pocket":
        said += " The generator `pocket` is the small model that comes with dino_pipeline; it knows a toy grammar only."
    return f"## How it was made\n\n{said}\n\n{table(['', ''], rows)}"


def scorer_of(options: Mapping[str, Any]) -> str | None:
    """Return what scored a server's texts, a model or the server itself; None if nothing did."""
    scorer = options.get("scorer")
    return scorer["model"] if isinstance(scorer, dict) else scorer


def _sections(run: Run, report: Report) -> list[str]:
    titles = {
        "generation": "Fidelity",
        "funnel": "Filter",
        "balance": "Label balance",
        "similarity": "Similarity within pairs",
        "contamination": "Evaluation data",
    }
    found = {title: report.sections[name] for name, title in titles.items() if name in report.sections}
    parts = {title: f"## {title}\n\n{markdown(section)}" for title, section in found.items()}
    if "Filter" in parts:
        parts["Filter"] += f"\n\nIts options:\n\n{_filter_options(run)}"
    return list(parts.values())


def _filter_options(run: Run) -> str:
    options = public(run.stage("filter")["options"])
    named = {name: value for name, value in {**options, **options["hygiene"]}.items() if name not in NO_OPTIONS}
    rows = [
        [name.replace("_", " "), ", ".join(map(str, value)) if isinstance(value, list) else str(value)]
        for name, value in named.items()
        if value not in (None, [])
    ]
    return table(["option", "value"], rows)


def _samples(report: Report) -> str:
    block = next(block for block in report.sections["samples"].blocks if isinstance(block, Samples))
    return f"## Samples\n\n{samples(block, SHOWN)}"


def _again(publication: Publication) -> str:
    again = publication.again
    if not again.commands:
        return "## Make it again\n\nThe texts came from a file that is not published here."
    lacks = f"They need what is not here: {plain('; '.join(again.lacks))}.\n\n" if again.lacks else ""
    lines = "\n".join(shlex.join(command) for command in again.commands)
    name = publication.repository
    return (
        "## Make it again\n\nWith dino_pipeline and the versions of `lineage.json`, in a copy of this repository "
        f"(`hf download {name} --repo-type dataset --local-dir {name.rpartition('/')[2]}`):\n\n"
        f"{fenced(lines, 'sh')}\n\n{lacks}`dino verify .` checks the files against `lineage.json`."
    )


def _limits(run: Run, publication: Publication) -> str:
    filtered = run.stage("filter")
    if run.stage("generate"):
        said = [
            "No person has looked at the texts or the labels.",
            "What the generator believes and repeats about people and things is in the texts.",
            "The generator knows facts only as a language model does; nothing here is evidence of anything.",
        ]
        if not filtered["options"].get("verify"):
            said.append("The labels were not verified by a second look (`dino filter --verify`).")
    else:
        said = ["Who wrote the texts and the labels, and how, is not known here."]
    funnel = Funnel.of(run.record().filter)
    if flagged := funnel.total("flagged", "personal data"):
        said.append(f"**{flagged} of the texts that were kept hold what looks like personal data.**")
    withheld = sum(funnel.total("dropped", reason) for reason in WITHHELD_REASONS)
    if withheld and publication.raw:
        said.append(f"{withheld} dropped texts are not published: they hold personal data, or evaluation data.")
    return "## Limits and biases\n\n" + "\n".join(f"- {each}" for each in said)
