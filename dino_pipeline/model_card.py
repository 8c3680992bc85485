"""The card of a trained bi-encoder: what it is, how it was made, and what nobody has checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Lineage:
    """Where a model comes from, as run.json records it."""

    name: str
    dimension: int
    max_length: int
    finetuned: dict[str, Any]
    """The finetune stage's record."""
    generated: dict[str, Any]
    """The generate stage's record; empty where the data was brought as a file."""
    filtered: dict[str, Any]
    """The filter stage's record; empty where the model was trained on other data."""
    citation: str
    language: str | None
    license: str | None


def model_card(of: Lineage) -> str:
    """Return the card as Markdown with the front matter that the Hub reads."""
    return "\n".join([*_front_matter(of), *_what(of), *_how(of), *_limits(of), *_citation(of)]) + "\n"


def _front_matter(of: Lineage) -> list[str]:
    fields: dict[str, Any] = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["sentence-transformers", "sentence-similarity", "feature-extraction", "dino", "synthetic"],
        "language": of.language,
        "license": of.license,
    }
    # JSON values are YAML values
    return ["---", *(f"{key}: {json.dumps(value)}" for key, value in fields.items() if value is not None), "---", ""]


def _what(of: Lineage) -> list[str]:
    return [
        f"# {of.name}",
        "",
        f"A sentence encoder: texts of up to {of.max_length} tokens become vectors of {of.dimension} numbers, whose",
        f"cosine says how similar two texts are. It is `{of.finetuned['options']['encoder']}`, trained on pairs of",
        "texts that a language model wrote.",
        "",
        "```python",
        "from sentence_transformers import SentenceTransformer",
        "",
        'model = SentenceTransformer("path/to/this/folder")',
        'first, second = model.encode(["A man plays a guitar.", "Someone is making music."])',
        "print(model.similarity(first, second))",
        "```",
        "",
    ]


def _how(of: Lineage) -> list[str]:
    options = of.finetuned["options"]
    shown = ("objective", "epochs", "batch_size", "learning_rate", "weight_decay", "warmup", "seed")
    lines = ["## How it was made", "", "| training | |", "|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {options[name]} |" for name in shown]
    lines += [
        f"| pairs | {of.finetuned['train']} to train on, {of.finetuned['dev']} held out |",
        f"| best Spearman on the held-out pairs x 100 | {of.finetuned['dev_spearman']} |",
        f"| versions | {', '.join(f'{name} {version}' for name, version in of.finetuned['versions'].items())} |",
        "",
    ]
    lines += _texts(of.generated) if of.generated else [f"The pairs came from a file, `{options['data']}`.", ""]
    return lines + (_filter(of.filtered) if of.filtered else [])


def _texts(generated: dict[str, Any]) -> list[str]:
    options = generated["options"]
    sampling = ", ".join(f"{name} {value}" for name, value in options["sampling"].items())
    return [
        f"The texts were written by `{options['model']}` from the task spec `{generated.get('task')}` "
        f"(digest {options['spec']}): {options['samples']} per input and label, {sampling}, seed {options['seed']}.",
        "",
    ]


def _filter(filtered: dict[str, Any]) -> list[str]:
    totals = [(step, sum(count for _, count in counts)) for step, counts in filtered["funnel"]]
    dropped = [f"{count} {step.removeprefix('- ')}" for step, count in totals if step.startswith("- ") and count]
    options, found = filtered["options"], dict(totals)
    excluded = ", ".join(f"`{name}`" for name in options["exclude"])
    leaks = found.get("- in evaluation data", 0)
    return [
        f"Of {found['read']} texts, {found['kept']} were kept, with {options['labels']} labels; dropped were "
        f"{', '.join(dropped) or 'none'}.",
        "",
        f"Evaluation data that was kept out: {excluded} ({leaks} pairs held a text of it)."
        if excluded
        else "Nothing was compared with evaluation data (`dino filter --exclude`).",
        "",
    ]


def _limits(of: Lineage) -> list[str]:
    return [
        "## What nobody has checked",
        "",
        "- A pair's score says which instruction its text was written for; no person looked at the pairs, and a",
        "  score is wrong wherever the generator did not follow its instruction.",
        "- The best checkpoint was chosen on held-out pairs of the same kind, not on human judgements: the figure",
        "  above says how well the model fits such pairs, not how well it does elsewhere.",
        "- What the generator believes and repeats about people and things is in the texts, and so in the model.",
        "",
    ]


def _citation(of: Lineage) -> list[str]:
    return ["## Citation", "", f"{of.citation}."]
