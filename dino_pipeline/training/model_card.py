"""The card of a trained bi-encoder: what it is, how it was made, and what nobody has checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dino_pipeline.measures import measure_title
from dino_pipeline.public import public
from dino_pipeline.record_shim import old_funnel

HERE = "path/to/this/folder"
SHOWN = (
    "objective", "epochs", "steps", "batch_size", "learning_rate", "weight_decay", "warmup", "schedule", "max_length",
    "mini_batch_size", "bf16", "faithful", "seed",
)  # fmt: skip
"""Hyper-parameters that every objective has."""


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
    front = [f"{key}: {json.dumps(value)}\n" for key, value in front_matter(of).items()]  # JSON values are YAML values
    return f"---\n{''.join(front)}---\n\n{body(of)}"


def front_matter(of: Lineage) -> dict[str, Any]:
    """Return the fields that the Hub reads."""
    fields = {
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
    return {key: value for key, value in fields.items() if value is not None}


def body(of: Lineage, origin: Sequence[str] = (), scores: Sequence[str] = ()) -> str:
    """Return the card's text as Markdown.

    Args:
        of: where the model comes from.
        origin: what else is to be said of the texts, part by part.
        scores: and of what the model is worth.
    """
    parts = [_what(of), *_classes(of), *origin, _how(of), *scores, _limits(of), f"## Citation\n\n{of.citation}."]
    return "\n\n".join(parts) + "\n"


def _what(of: Lineage) -> str:
    sizes = of.finetuned["options"]["matryoshka"]
    shorter = (
        f" The first {', '.join(map(str, sizes))} of them work alone (`truncate_dim={sizes[0]}`)." if sizes else ""
    )
    asymmetric = " Texts to search in are encoded with `encode_document`." if of.prompts else ""
    taught = "texts that a language model wrote" if of.generated else f"`{of.finetuned['options']['data']}`"
    return f"""# {of.name}

A sentence encoder: texts of up to {of.max_length} tokens become vectors of {of.dimension} numbers, whose
cosine says how similar two texts are.{shorter}{asymmetric}
It is `{public(of.finetuned["options"])["encoder"]}`, trained on {taught}.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{of.address}")
first, second = model.encode(["A man plays a guitar.", "Someone is making music."])
print(model.similarity(first, second))
```"""


def _classes(of: Lineage) -> list[str]:
    """Return how to tell classes by the head beside the encoder."""
    head = of.finetuned.get("head")
    if not head:
        return []
    found, get = f'"{of.address}/head.safetensors"', ""
    if of.address != HERE:
        found = f'hf_hub_download("{of.address}", "head.safetensors")'
        get = "from huggingface_hub import hf_hub_download\n"
    classes = ", ".join(f"`{name}`" for name in head["classes"])
    figures = f" On held-out texts it is right in {head['accuracy']:.1f} of 100." if "accuracy" in head else ""
    return [
        f"""`head.safetensors` holds a linear head that tells the classes {classes}.{figures}

```python
import json

{get}from safetensors import safe_open
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{of.address}")
with safe_open({found}, "numpy") as head:
    weight, bias = head.get_tensor("weight"), head.get_tensor("bias")
    classes = json.loads(head.metadata()["classes"])


def predict(texts):
    scores = model.encode(texts) @ weight.T + bias
    return [classes[best] for best in scores.argmax(axis=1)]


print(predict(["A text to classify.", "And another one."]))
```"""
    ]


def counting(options: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Return which of these hyper-parameters count: epochs do not where steps were given."""
    return [name for name in names if name != "epochs" or not options.get("steps")]


def _how(of: Lineage) -> str:
    found, options = of.finetuned, of.finetuned["options"]
    chosen = found["selection"]
    own = {
        **{name: options[name] for name in counting(options, SHOWN)},
        "pooling": found["pooling"],
        **options["options"],
    }
    rows = {
        **{name.replace("_", " "): value for name, value in own.items() if not (value is None or value is False)},
        "rows": f"{found['train']} to train on, {found['dev']} held out",
        f"best {measure_title(chosen['measure'])}, on {chosen['on']}": chosen["best"],
        "versions": ", ".join(f"{name} {version}" for name, version in found["versions"].items()),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    parts = [f"## How it was made\n\n| training | |\n|---|---|\n{table}"]
    if found["made"]:
        parts.append(f"Of the texts: {'; '.join(found['made'])}.")
    parts.append(_texts(of.generated) if of.generated else f"The texts came from `{options['data']}`.")
    if of.filtered:
        parts += _filter(of.filtered, classes=bool(found.get("head")))
    return "\n\n".join(parts)


def _texts(generated: dict[str, Any]) -> str:
    options = public(generated["options"])
    sampling = ", ".join(f"{name} {value}" for name, value in options["sampling"].items())
    return (
        f"The texts were written by `{options['model']}` from the task spec `{generated.get('task')}` "
        f"(digest {options['spec']}): {options['samples']} per input and label, {sampling}, seed {options['seed']}."
    )


def _filter(filtered: dict[str, Any], *, classes: bool) -> list[str]:
    funnel, options = old_funnel(filtered["funnel"]).brief(), public(filtered["options"])
    dropped = [f"{step.total} {step.rule}" for step in funnel if step.kind == "dropped" and step.total]
    excluded = ", ".join(f"`{name}`" for name in options["exclude"])
    leaks = funnel.total("dropped", "in evaluation data")
    labels = "" if classes else f", with {options['labels']} labels"
    return [
        f"Of {funnel.total('read')} texts, {funnel.total('kept')} were kept{labels}; dropped were "
        f"{', '.join(dropped) or 'none'}.",
        f"Evaluation data that was kept out: {excluded} ({leaks} pairs held a text of it)."
        if excluded
        else "Nothing was compared with evaluation data (`dino filter --exclude`).",
    ]


def _limits(of: Lineage) -> str:
    chosen, lines = of.finetuned["selection"], []
    if of.finetuned["collapsed"]:
        mean = of.finetuned["mean_cosine"]
        lines.append(f"- Its embeddings have collapsed: cosines of different texts average {mean}.")
    if of.generated:
        lines += [
            "- A label says which instruction a text was written for; no person looked at the texts, and a label is\n"
            "  wrong wherever the generator did not follow its instruction.",
            "- What the generator believes and repeats about people and things is in the texts, and so in the model.",
        ]
    lines.append(
        f"- The best checkpoint was chosen on human labels (`{chosen['on']}`): figures on these, and on sets like\n"
        "  them, are no figures of a model that was made without labels."
        if chosen["human_labels"]
        else f"- The best checkpoint was chosen on held-out texts (`{chosen['on']}`): the figure above says how well\n"
        "  the model fits such texts, not how well it does elsewhere."
    )
    return "\n".join(["## What nobody has checked", "", *lines])
