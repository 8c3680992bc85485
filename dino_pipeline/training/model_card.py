"""The card of a trained bi-encoder: what it is, how it was made, and what nobody has checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from dino_pipeline.filtering.funnel import Funnel
from dino_pipeline.measures import measure_title
from dino_pipeline.texts import public

HERE = "path/to/this/folder"


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
    prompts: bool
    """Whether queries and documents are encoded apart."""
    language: str | None
    license: str | None
    address: str = HERE
    """From where it loads."""


def model_card(of: Lineage) -> str:
    """Return the card as Markdown with the front matter that the Hub reads."""
    return "\n".join([*_front_matter(of), *_what(of), *_classes(of), *_how(of), *_limits(of), *_citation(of)]) + "\n"


def _front_matter(of: Lineage) -> list[str]:
    fields: dict[str, Any] = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": [
            "sentence-transformers",
            "sentence-similarity",
            "feature-extraction",
            *(["dino", "synthetic"] if of.generated else []),
        ],
        "language": of.language,
        "license": of.license,
    }
    # JSON values are YAML values
    return ["---", *(f"{key}: {json.dumps(value)}" for key, value in fields.items() if value is not None), "---", ""]


def _what(of: Lineage) -> list[str]:
    sizes = of.finetuned["options"]["matryoshka"]
    shorter = (
        f" The first {', '.join(map(str, sizes))} of them work alone (`truncate_dim={sizes[0]}`)." if sizes else ""
    )
    asymmetric = " Texts to search in are encoded with `encode_document`." if of.prompts else ""
    taught = "texts that a language model wrote" if of.generated else f"`{of.finetuned['options']['data']}`"
    return [
        f"# {of.name}",
        "",
        f"A sentence encoder: texts of up to {of.max_length} tokens become vectors of {of.dimension} numbers, whose",
        f"cosine says how similar two texts are.{shorter}{asymmetric}",
        f"It is `{public(of.finetuned['options'])['encoder']}`, trained on {taught}.",
        "",
        "```python",
        "from sentence_transformers import SentenceTransformer",
        "",
        f'model = SentenceTransformer("{of.address}")',
        'first, second = model.encode(["A man plays a guitar.", "Someone is making music."])',
        "print(model.similarity(first, second))",
        "```",
        "",
    ]


def _classes(of: Lineage) -> list[str]:
    """Return how to tell classes by the head beside the encoder."""
    head = of.finetuned.get("head")
    if not head:
        return []
    found, get = f'"{of.address}/head.safetensors"', []
    if of.address != HERE:
        found, get = (
            f'hf_hub_download("{of.address}", "head.safetensors")',
            ["from huggingface_hub import hf_hub_download"],
        )
    classes = ", ".join(f"`{name}`" for name in head["classes"])
    figures = f" On held-out texts it is right in {head['accuracy']:.1f} of 100." if "accuracy" in head else ""
    return [
        f"`head.safetensors` holds a linear head that tells the classes {classes}.{figures}",
        "",
        "```python",
        "import json",
        "",
        *get,
        "from safetensors import safe_open",
        "from sentence_transformers import SentenceTransformer",
        "",
        f'model = SentenceTransformer("{of.address}")',
        f'with safe_open({found}, "numpy") as head:',
        '    weight, bias = head.get_tensor("weight"), head.get_tensor("bias")',
        '    classes = json.loads(head.metadata()["classes"])',
        "",
        "",
        "def predict(texts):",
        "    scores = model.encode(texts) @ weight.T + bias",
        "    return [classes[best] for best in scores.argmax(axis=1)]",
        "",
        "",
        'print(predict(["A text to classify.", "And another one."]))',
        "```",
        "",
    ]


SHOWN = (
    "objective", "epochs", "steps", "batch_size", "learning_rate", "weight_decay", "warmup", "schedule", "max_length",
    "mini_batch_size", "bf16", "faithful", "seed",
)  # fmt: skip


def _how(of: Lineage) -> list[str]:
    found, options = of.finetuned, of.finetuned["options"]
    chosen = found["selection"]
    own = {**{name: options[name] for name in SHOWN}, "pooling": found["pooling"], **options["options"]}
    lines = ["## How it was made", "", "| training | |", "|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {value} |" for name, value in own.items() if value not in (None, False)]
    lines += [
        f"| rows | {found['train']} to train on, {found['dev']} held out |",
        f"| best {measure_title(chosen['measure'])}, on {chosen['on']} | {chosen['best']} |",
        f"| versions | {', '.join(f'{name} {version}' for name, version in found['versions'].items())} |",
        "",
        *([f"Of the texts: {'; '.join(found['made'])}.", ""] if found["made"] else []),
    ]
    classes = bool(found.get("head"))
    lines += _texts(of.generated) if of.generated else [f"The texts came from `{options['data']}`.", ""]
    return lines + (_filter(of.filtered, classes) if of.filtered else [])


def _texts(generated: dict[str, Any]) -> list[str]:
    options = public(generated["options"])
    sampling = ", ".join(f"{name} {value}" for name, value in options["sampling"].items())
    return [
        f"The texts were written by `{options['model']}` from the task spec `{generated.get('task')}` "
        f"(digest {options['spec']}): {options['samples']} per input and label, {sampling}, seed {options['seed']}.",
        "",
    ]


def _filter(filtered: dict[str, Any], classes: bool) -> list[str]:
    found, options = Funnel.of_json(filtered["funnel"]).totals(), public(filtered["options"])
    dropped = [f"{count} {step.removeprefix('- ')}" for step, count in found.items() if step.startswith("- ") and count]
    excluded = ", ".join(f"`{name}`" for name in options["exclude"])
    leaks = found.get("- in evaluation data", 0)
    labels = "" if classes else f", with {options['labels']} labels"
    return [
        f"Of {found['read']} texts, {found['kept']} were kept{labels}; dropped were {', '.join(dropped) or 'none'}.",
        "",
        f"Evaluation data that was kept out: {excluded} ({leaks} pairs held a text of it)."
        if excluded
        else "Nothing was compared with evaluation data (`dino filter --exclude`).",
        "",
    ]


def _limits(of: Lineage) -> list[str]:
    chosen = of.finetuned["selection"]
    lines = ["## What nobody has checked", ""]
    if of.finetuned["collapsed"]:
        lines += [f"- Its embeddings have collapsed: cosines of different texts average {of.finetuned['mean_cosine']}."]
    if of.generated:
        lines += [
            "- A label says which instruction a text was written for; no person looked at the texts, and a label is",
            "  wrong wherever the generator did not follow its instruction.",
            "- What the generator believes and repeats about people and things is in the texts, and so in the model.",
        ]
    if chosen["human_labels"]:
        lines += [
            f"- The best checkpoint was chosen on human labels (`{chosen['on']}`): figures on these, and on sets like",
            "  them, are no figures of a model that was made without labels.",
        ]
    else:
        lines += [
            f"- The best checkpoint was chosen on held-out texts (`{chosen['on']}`): the figure above says how well",
            "  the model fits such texts, not how well it does elsewhere.",
        ]
    return [*lines, ""]


def _citation(of: Lineage) -> list[str]:
    return ["## Citation", "", f"{of.citation}."]
