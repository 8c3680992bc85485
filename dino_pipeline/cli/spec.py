"""dino spec: list, check, show and begin task specs."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from dino_pipeline.cli.base import FILE, command, parts_of
from dino_pipeline.cli.specs import SpecFile, shipped
from dino_pipeline.errors import OptionError, OutputError, SpecError


@click.group()
def spec() -> None:
    """List, check, show and begin task specs."""


@spec.command("list")
@command
def spec_list() -> None:
    """List the task specs that come with dino; a name stands for its file wherever a SPEC is asked for."""
    from dino_pipeline.spec_file import load_spec

    found = {name: load_spec(path) for name, path in shipped().items()}
    formatter = click.get_current_context().make_formatter()
    formatter.write_dl([(name, f"{each.description} ({', '.join(each.labels)})") for name, each in found.items()])
    click.echo(formatter.getvalue(), nl=False)


@spec.command("check")
@click.argument("files", metavar="SPEC...", nargs=-1, required=True, type=SpecFile())
@command
def spec_check(files: Sequence[Path]) -> None:
    """Say everything that is wrong with task SPECs; exit code 2 if anything is."""
    from dino_pipeline.spec_file import load_spec

    wrong = 0
    for file in files:
        try:
            found = load_spec(file)
        except SpecError as error:
            wrong += 1
            click.echo(str(error), err=True)
        else:
            kind = "pairs" if found.needs_inputs else "single texts"
            click.echo(f"{file}: fine ({kind}, labels {', '.join(found.labels)})")
    if wrong:
        sys.exit(2)


@spec.command("show")
@click.argument("file", metavar="SPEC", type=SpecFile())
@click.option("--input", "text", help="The text that fills <X1>.")
@click.option("--model", metavar="MODEL", help="Show them in this model's chat template.")
@command
def spec_show(file: Path, text: str | None, model: str | None) -> None:
    """Print the exact prompts of a task SPEC, label by label."""
    from dino_pipeline.spec_file import load_spec

    found = load_spec(file)
    if found.needs_inputs and text is None:
        raise OptionError(f'{file}: its instructions hold <X1>; give a text with --input "..."')
    if text is not None and not found.needs_inputs:
        raise OptionError(f"{file}: its instructions lack <X1>, so --input has no place; leave it out")
    tokenizer = None
    if model is not None:
        from dino_pipeline.decoding.loading import load_tokenizer
        from dino_pipeline.decoding.tokenization import render_chat
        from dino_pipeline.models import ModelRef

        tokenizer = load_tokenizer(ModelRef(name=model))
    values = {name: choices[0] for name, choices in found.variables.items()}
    for label, rule in found.labels.items():
        counters = ", ".join(rule.counter_labels) or "none"
        click.secho(f"--- label {label} (counter-labels: {counters})", bold=True)
        prompt = found.prompt(label, text, values)
        if tokenizer:
            prompt = render_chat(tokenizer, prompt, found.opening(label), alternative="leave {model} out")
        click.echo(prompt)


KINDS = {
    "similarity": "pairs of texts, scored from 1 (the same) to 0",
    "classes": "single texts with a class",
    "pairs": "pairs of texts with a class",
}


@spec.command("new")
@click.argument("name")
@click.option("--kind", type=click.Choice(list(KINDS)), help="; ".join(f"{key}: {KINDS[key]}" for key in KINDS) + ".")
@click.option("--labels", metavar="NAME,...", help="Its labels.  [default: 1,0.5,0 of a similarity]")
@click.option("--about", metavar="WORD", help="What one text is, e.g. 'question' or 'review'.")
@click.option("--language", metavar="CODE", default="en", show_default=True, help="Two letters.")
@click.option("--output", type=FILE, help="The file to write.  [default: task_specs/NAME.json]")
@command
def spec_new(
    name: str, kind: str | None, labels: str | None, about: str | None, language: str, output: Path | None
) -> None:
    """Write a task spec to begin with, with a comment at each place; what no option says is asked."""
    from dino_pipeline.files import write_bytes
    from dino_pipeline.spec_file import load_spec
    from dino_pipeline.text import as_number

    path = output or Path("task_specs") / f"{name}.json"
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise OptionError(f"{name!r} is no name for a spec; use letters, digits, '-', '_' and '.'")
    if path.exists():
        raise OutputError(f"{path}: is there already; give another name, or --output")
    kind = kind or _asked("--kind", "What does it write?", "similarity", click.Choice(list(KINDS)))
    about = about or _asked("--about", "What is one text (sentence, question, review ...)?", "sentence")
    if labels is None:
        labels = "1,0.5,0" if kind == "similarity" else _asked("--labels", "Its labels, with commas?", "good,bad")
    names = parts_of(labels)
    if kind == "similarity":  # the most alike first: a label's counter-labels are those before it
        names.sort(key=lambda each: -(as_number(each) or 0.0))
    content = (json.dumps(_begun(name, kind, names, about, language), indent=2, ensure_ascii=False) + "\n").encode()
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / path.name
        trial.write_bytes(content)
        try:
            load_spec(trial)
        except SpecError as error:
            raise OptionError(f"--labels {labels}: {'; '.join(error.problems)}") from error
    write_bytes(path, content)
    click.echo(f"{path}: is written; mend its instructions, then: dino preview {path}")


def _asked(option: str, question: str, default: str, choices: click.Choice[str] | None = None) -> str:
    """Ask, where there is somebody to answer."""
    if not sys.stdin.isatty():
        raise OptionError(f"{option} is missing, and there is nobody to ask")
    return str(click.prompt(question, default=default, type=choices))


def _begun(name: str, kind: str, labels: Sequence[str], about: str, language: str) -> dict[str, Any]:
    """Return a spec to begin with; keys that begin with // are comments."""
    noun = about[:1].upper() + about[1:]
    found: dict[str, Any] = {
        "//": "Keys that begin with // are comments. task_specs/README.md tells all others, dino spec check mistakes.",
        "task_name": name,
        "description": f"TODO: what this dataset is for ({KINDS[kind]}).",
        "language": language,
    }
    if kind != "similarity":
        found["label_type"] = "class"
    what = {"1": "that mean the same thing", "0.5": "that are somewhat similar", "0": "on completely different topics"}
    found["labels"] = {
        "// instructions": "Alike but for what tells the labels apart. They end with the mark that opens a text.",
        "// counter_labels": "Whose texts must be unlikely here: those that these texts would else drift to.",
    }
    for at, label in enumerate(labels):
        said = what.get(label, f"that are TODO ({label})") if kind == "similarity" else f"TODO: what {label} means"
        one = f'Task: Write a {about} ({said}).\n{noun}: "'
        two = (
            f'Task: Write two {about}s {said if kind == "similarity" else f"({said})"}.\n{noun} 1: "<X1>"\n{noun} 2: "'
        )
        counters = labels[:at] if kind == "similarity" else [other for other in labels if other != label]
        found["labels"][label] = {"instruction": one if kind == "classes" else two, "counter_labels": list(counters)}
    if kind != "classes":
        found["// inputs"] = (
            "What fills <X1>: this spec writes it, or give your own texts with --inputs FILE, if you have any."
        )
        found["inputs"] = {
            "task_name": f"{name}-inputs",
            "labels": {about.replace(" ", "-"): {"instruction": f'Task: Write a {about} about <TOPIC>.\n{noun}: "'}},
            "// variables": "Drawn anew for each text: a list, or the name of a file beside this one with one a line.",
            "variables": {"TOPIC": ["TODO", "a topic", "another topic"]},
            "sampling": {"top_k": 0, "top_p": 0.95},
        }
    return found


@spec.command("schema")
@command
def spec_schema() -> None:
    """Print the JSON Schema of task specs, for editors."""
    from dino_pipeline.spec import TaskSpec

    click.echo(json.dumps(TaskSpec.model_json_schema(), indent=2, ensure_ascii=False))
