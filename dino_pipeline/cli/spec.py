"""dino spec: check, show and describe task specs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from dino_pipeline.cli.base import command, model_path
from dino_pipeline.errors import OptionError


@click.group()
def spec() -> None:
    """Check, show and describe task specs."""


@spec.command("check")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@command
def spec_check(files: Sequence[Path]) -> None:
    """Say everything that is wrong with task spec FILES; exit code 2 if anything is."""
    from dino_pipeline.errors import SpecError
    from dino_pipeline.spec import load_spec

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
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--input", "text", help="The text that fills <X1>.")
@click.option("--model", help="Show them in this model's chat template.")
@command
def spec_show(file: Path, text: str | None, model: str | None) -> None:
    """Print the exact prompts of a task spec FILE, label by label."""
    from dino_pipeline.spec import load_spec

    found = load_spec(file)
    if found.needs_inputs and text is None:
        raise OptionError(f'{file}: its instructions hold <X1>; give a text with --input "..."')
    if text is not None and not found.needs_inputs:
        raise OptionError(f"{file}: its instructions lack <X1>, so --input has no place; leave it out")
    tokenizer = None
    if model is not None:
        from dino_pipeline.chat import render
        from dino_pipeline.loading import Generator, load_tokenizer

        tokenizer = load_tokenizer(Generator(model_path(model, "GENERATOR")))
    values = {name: choices[0] for name, choices in found.variables.items()}
    for label, rule in found.labels.items():
        counters = ", ".join(rule.counter_labels) or "none"
        click.secho(f"--- label {label} (counter-labels: {counters})", bold=True)
        prompt = found.prompt(label, text, values)
        click.echo(render(tokenizer, prompt, found.opening(label)) if tokenizer else prompt)


@spec.command("schema")
@command
def spec_schema() -> None:
    """Print the JSON Schema of task specs, for editors."""
    from dino_pipeline.spec import TaskSpec

    click.echo(json.dumps(TaskSpec.model_json_schema(), indent=2, ensure_ascii=False))
