"""dino spec: list, check, show and write task specs; the SPEC argument of all commands."""

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
from dino_pipeline.display import say, spelt
from dino_pipeline.errors import OptionError, OutputError, SpecError


class SpecFile(click.ParamType[Path]):
    """The SPEC argument: a task spec's file, or the name of a shipped one. It is converted to the file's path."""

    name = "SPEC"

    def convert(self, value: Any, param: Any, ctx: Any) -> Path:
        from dino_pipeline.spec_file import spec_path

        try:
            return spec_path(Path(value))
        except SpecError:
            self.fail(
                f"{spelt(value)}: there is no such file, and no spec of that name comes with dino; see dino spec list",
                param,
                ctx,
            )


@click.group("spec")
def spec_command() -> None:
    """List, check, show and write task specs."""


@spec_command.command("list")
@command
def spec_list() -> None:
    """List the task specs that come with dino. Every command takes their names in place of a file."""
    from dino_pipeline.spec_file import load_spec, shipped_specs

    rows = []
    for name, path in shipped_specs().items():
        shipped = load_spec(path)
        rows.append((name, f"{shipped.description} ({', '.join(shipped.labels)})"))
    formatter = click.get_current_context().make_formatter()
    formatter.write_dl(rows)
    click.echo(formatter.getvalue(), nl=False)


@spec_command.command("check")
@click.argument("files", metavar="SPEC...", nargs=-1, required=True, type=SpecFile())
@command
def spec_check(files: Sequence[Path]) -> None:
    """Name every mistake in task SPECs. The exit code is 2 if there are any."""
    from dino_pipeline.spec_file import load_spec

    any_wrong = False
    for file in files:
        try:
            checked = load_spec(file)
        except SpecError as error:
            any_wrong = True
            say(str(error), err=True)
        else:
            kind = "pairs" if checked.needs_inputs else "single texts"
            say(f"{file}: fine ({kind}, labels {', '.join(checked.labels)})")
    if any_wrong:
        sys.exit(2)


@spec_command.command("show")
@click.argument("file", metavar="SPEC", type=SpecFile())
@click.option("--input", "text", help="The text that fills <X1>.")
@click.option("--model", metavar="MODEL", help="Show the prompts in this model's chat template.")
@command
def spec_show(file: Path, text: str | None, model: str | None) -> None:
    """Print the exact prompts of a task SPEC, label by label."""
    from dino_pipeline.spec_file import load_spec

    shown = load_spec(file)
    if shown.needs_inputs and text is None:
        raise OptionError(f"{file}: its instructions hold <X1>", 'give a text with {input="..."}')
    if text is not None and not shown.needs_inputs:
        raise OptionError(f"{file}: its instructions lack <X1>", "leave {input} out")
    tokenizer = None
    if model is not None:
        from dino_pipeline.decoding.loading import load_tokenizer
        from dino_pipeline.decoding.tokenization import render_chat
        from dino_pipeline.models import ModelRef

        tokenizer = load_tokenizer(ModelRef(name=model))
    values = {name: choices[0] for name, choices in shown.variables.items()}
    for label, rule in shown.labels.items():
        counters = ", ".join(rule.counter_labels) or "none"
        say(f"--- label {label} (counter-labels: {counters})", bold=True)
        prompt = shown.prompt(label, text, values)
        if tokenizer:
            prompt = render_chat(tokenizer, prompt, shown.opening(label), alternative="leave {model} out")
        say(prompt)


KINDS = {
    "similarity": "pairs of texts, scored from 1 (the same) to 0",
    "classes": "single texts with a class",
    "pairs": "pairs of texts with a class",
}


@spec_command.command("new")
@click.argument("name")
@click.option("--kind", type=click.Choice(list(KINDS)), help="; ".join(f"{key}: {KINDS[key]}" for key in KINDS) + ".")
@click.option("--labels", metavar="NAME,...", help="The labels.  [default: 1,0.5,0 for a similarity]")
@click.option("--about", metavar="WORD", help="The kind of text, e.g. 'question' or 'review'.")
@click.option("--language", metavar="CODE", default="en", show_default=True, help="Two letters.")
@click.option("--output", type=FILE, help="The file to write.  [default: task_specs/NAME.json]")
@command
def spec_new(
    name: str, kind: str | None, labels: str | None, about: str | None, language: str, output: Path | None
) -> None:
    """Write a commented task spec to start from. Missing options are asked for on a terminal."""
    from dino_pipeline.files import is_there, write_bytes
    from dino_pipeline.spec_file import load_spec
    from dino_pipeline.text import as_number

    path = output or Path("task_specs") / f"{name}.json"
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise OptionError(f"{name!r} cannot name a spec", "use letters, digits, '-', '_' and '.'")
    if is_there(path):
        raise OutputError(f"{path}: is there already", "give another name, or {output}")
    kind = kind or _ask("kind", "What does it write?", "similarity", click.Choice(list(KINDS)))
    about = about or _ask("about", "What is one text (sentence, question, review ...)?", "sentence")
    if labels is None:
        labels = "1,0.5,0" if kind == "similarity" else _ask("labels", "Its labels, with commas?", "good,bad")
    names = parts_of(labels)
    if kind == "similarity":  # most similar first: the counter-labels of a label are the labels before it
        names.sort(key=lambda label: -(as_number(label) or 0.0))
    content = json.dumps(_template(name, kind, names, about, language), indent=2, ensure_ascii=False) + "\n"
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / path.name
        write_bytes(trial, content.encode())
        try:
            load_spec(trial)
        except SpecError as error:
            raise OptionError("; ".join(error.problems), option="labels", value=labels) from error
    write_bytes(path, content.encode())
    say(f"{path}: is written; edit its instructions, then: dino preview {path}")


def _ask(option: str, question: str, default: str, choices: click.Choice[str] | None = None) -> str:
    """Return the user's answer; raise `OptionError` if nobody is at the terminal."""
    if not sys.stdin.isatty():
        raise OptionError(f"--{option} is missing, and there is nobody to ask")
    return str(click.prompt(question, default=default, type=choices))


SIMILARITIES = {
    "1": "that mean the same thing",
    "0.5": "that are somewhat similar",
    "0": "on completely different topics",
}
"""How an instruction describes pairs of a similarity."""


def _template(name: str, kind: str, labels: Sequence[str], about: str, language: str) -> dict[str, Any]:
    """Return a spec to start from; its keys that begin with // are comments.

    Args:
        name: of the task.
        kind: one of `KINDS`.
        labels: names of the labels; those of a similarity from the most similar to the least.
        about: the noun for one text.
        language: of the texts, two letters.
    """
    noun = about[:1].upper() + about[1:]
    template: dict[str, Any] = {
        "//": "Keys that begin with // are comments. task_specs/README.md explains all others, dino spec check finds "
        "mistakes.",
        "task_name": name,
        "description": f"TODO: what this dataset is for ({KINDS[kind]}).",
        "language": language,
    }
    if kind != "similarity":
        template["label_type"] = "class"
    template["labels"] = {
        "// instructions": "Alike except for the words that tell the labels apart. They end with the mark that opens "
        "a text.",
        "// counter_labels": "Labels whose texts must be unlikely here, because the model would drift to them.",
    }
    for at, label in enumerate(labels):
        template["labels"][label] = {
            "instruction": _instruction(kind, label, about, noun),
            "counter_labels": list(labels[:at])
            if kind == "similarity"
            else [other for other in labels if other != label],
        }
    if kind != "classes":
        template["// inputs"] = "This spec writes the texts that fill <X1>. If you have texts, give --inputs FILE."
        template["inputs"] = {
            "task_name": f"{name}-inputs",
            "labels": {about.replace(" ", "-"): {"instruction": f'Task: Write a {about} about <TOPIC>.\n{noun}: "'}},
            "// variables": "One value is drawn for each text. Give a list, or a file next to this one with a value "
            "per line.",
            "variables": {"TOPIC": ["TODO", "a topic", "another topic"]},
            "sampling": {"top_k": 0, "top_p": 0.95},
        }
    return template


def _instruction(kind: str, label: str, about: str, noun: str) -> str:
    if kind == "similarity":
        relation = SIMILARITIES.get(label, f"that are TODO ({label})")
        return f'Task: Write two {about}s {relation}.\n{noun} 1: "<X1>"\n{noun} 2: "'
    meaning = f"TODO: what {label} means"
    if kind == "pairs":
        return f'Task: Write two {about}s ({meaning}).\n{noun} 1: "<X1>"\n{noun} 2: "'
    return f'Task: Write a {about} ({meaning}).\n{noun}: "'


@spec_command.command("schema")
@command
def spec_schema() -> None:
    """Print the JSON Schema of task specs, for editors."""
    from dino_pipeline.spec import TaskSpec

    say(json.dumps(TaskSpec.model_json_schema(), indent=2, ensure_ascii=False))
