"""What texts a command writes, how many and how: its options, and what they come to with the spec's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from dino_pipeline.cli.base import FILE, options_of, under
from dino_pipeline.options import Sampling
from dino_pipeline.readers import INPUT_FORMATS

if TYPE_CHECKING:
    from dino_pipeline.generation.plan import GenerateOptions
    from dino_pipeline.readers import InputFile
    from dino_pipeline.spec import TaskSpec

WRITTEN_INPUTS = 500
"""Inputs to write where neither a file nor --num-inputs says how many."""

OPTIONS = (
    under("Inputs and texts"),
    click.option("--inputs", "inputs_file", type=FILE, help="Texts for <X1>, instead of writing them."),
    click.option(
        "--input-format",
        type=click.Choice(INPUT_FORMATS),
        default="auto",
        show_default=True,
        help="A text a line, JSONL with text_a, or the STS benchmark's TSV; auto: by the file's name.",
    ),
    click.option(
        "--num-inputs",
        type=click.IntRange(1),
        help=f"How many inputs.  [default: all of a file, else {WRITTEN_INPUTS}]",
    ),
    click.option(
        "--samples",
        type=click.IntRange(1),
        default=5,
        show_default=True,
        help="Texts per input and label, or per label.",
    ),
    under("Sampling"),
    click.option("--top-k", type=click.IntRange(0), help="0 keeps all tokens.  [default: the spec's, else 5]"),
    click.option("--top-p", type=click.FloatRange(0, 1), help="0 or 1 keeps all.  [default: the spec's, else 0.9]"),
    click.option(
        "--decay", type=click.FloatRange(0), help="Sharpness of debiasing; 0: off.  [default: the spec's, else 100]"
    ),
    click.option(
        "--floor", type=click.FloatRange(0, 1), help="Least factor of debiasing.  [default: the spec's, else 0.01]"
    ),
    click.option("--max-new-tokens", type=click.IntRange(1), help="Longest text.  [default: the spec's, else 40]"),
    click.option("--seed", default=42, show_default=True, help="Of all random choices."),
    under("What is rejected"),
    click.option("--keep-unfinished", is_flag=True, help="Keep texts without the closing stop string."),
    click.option("--keep-newlines", is_flag=True, help="Let texts hold newlines."),
    click.option("--min-words", type=click.IntRange(0), default=0, help="Reject texts of fewer words."),
    click.option("--min-tokens", type=click.IntRange(0), default=0, help="Reject texts of fewer tokens."),
)

text_options = options_of(OPTIONS)
"""Gives a command the options that say what texts to write."""


def text_settings(spec: TaskSpec, options: dict[str, Any]) -> tuple[InputFile | None, GenerateOptions]:
    """Return the texts that a user brings, if any, and what decides those to write.

    That is what the command line says before what the spec says, and then the paper.
    """
    from dino_pipeline.readers import input_file

    texts = input_file(options["inputs_file"], options["input_format"]) if options["inputs_file"] else None
    names = ("samples", "seed", "keep_unfinished", "min_words", "min_tokens", "best_of", "shard_size")
    sampling = {name: options[name] for name in ("top_k", "top_p", "decay", "floor", "max_new_tokens")}
    from dino_pipeline.generation.plan import GenerateOptions

    inputs = None if isinstance(spec.inputs, str | None) else spec.inputs
    chosen = GenerateOptions(
        **{name: options[name] for name in names if name in options},
        num_inputs=options["num_inputs"] or (WRITTEN_INPUTS if texts is None and spec.needs_inputs else None),
        keep_newlines=options["keep_newlines"] or spec.newlines,
        sampling=_sampling(spec.sampling.model_dump(), sampling),
        # how inputs are sampled is the inputs spec's own affair: flags speak of the texts
        input_sampling=_sampling(inputs.sampling.model_dump() if inputs else {}),
    )
    return texts, chosen


def _sampling(*said: dict[str, Any]) -> Sampling:
    """Return how to sample: what is said last counts, and None says nothing."""

    return Sampling(**{name: value for each in said for name, value in each.items() if value is not None})
