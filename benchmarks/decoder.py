"""Measures how much faster the decoder writes than the paper's procedure and than `transformers` generate().

    python -m benchmarks.decoder [--shape gpt2-124m] [--contender reference] [--repeats 3]

All contenders run models of the same shape with the same random weights, in one process, in turn at each repetition:

- reference: one (input, label) at a time. Its samples and their counter-prompts are one left-padded batch of 40 steps,
  debiased in a loop over samples, and texts are cut afterwards. In float32.
- generate: generate() with a logits processor, with as many inputs per batch as fit into the rows. In float32.
- float32, bfloat16: `dino_pipeline.decoding.decoder` as `dino generate` runs it. bfloat16 only runs if it is named:
  a CPU without it takes many minutes.

All but the reference stop each text at a planned length.

The floor is the time of the matrix products alone, by PyTorch's stock kernels. "Of floor" divides the products of the
whole work, in full steps, by the whole time. "Of its floor" divides the products of one step of all rows by the time of
such a step with debiasing and sampling.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial

import click
import torch
from tokenizers import Tokenizer, models
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from benchmarks.common import Memory, machine, timed
from benchmarks.contenders import (
    LABELS,
    SAMPLES,
    VOCAB,
    PlannedDecoder,
    planned_lengths,
    random_work,
    run_decoder,
    run_generate,
    run_reference,
)
from dino_pipeline.decoding.tuning import tune
from dino_pipeline.progress import table

SHAPES = {
    "gpt2-124m": GPT2Config(vocab_size=VOCAB),
    "gpt2-xl": GPT2Config(vocab_size=VOCAB, n_embd=1600, n_layer=48, n_head=25),
    "gpt2-4x256": GPT2Config(vocab_size=VOCAB, n_embd=256, n_layer=4, n_head=4),
    "llama-4x256": LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=1024,
        tie_word_embeddings=True,
    ),
    "llama-1.5b": LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=2048,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        intermediate_size=6144,
        tie_word_embeddings=True,
    ),
}
CONTENDERS = ["reference", "generate", "float32", "bfloat16"]
INPUTS = {"reference": 2, "generate": 24}
"""Inputs per repetition of contenders that do not take ``--inputs``."""


def build_model(shape: str, device: str, dtype: str) -> PreTrainedModel:
    """Return a model of the shape with random weights."""
    torch.manual_seed(0)
    with torch.device(device):  # a CPU takes minutes to draw the weights of gpt2-xl
        return AutoModelForCausalLM.from_config(deepcopy(SHAPES[shape]), dtype=dtype).eval()


def build_decoder(shape: str, rows: int, device: str, dtype: str) -> PlannedDecoder:
    """Return a decoder over such a model."""
    tokenizer = Tokenizer(models.WordLevel({f"w{token}": token for token in range(VOCAB)}, unk_token="w0"))
    model = build_model(shape, device, dtype)
    tune(model, rows)
    return PlannedDecoder(model, PreTrainedTokenizerFast(tokenizer_object=tokenizer), rows=rows)


def build(contender: str, shape: str, rows: int, device: str) -> Callable[[int], float | None]:
    """Return a function that writes the texts of a number of inputs and returns the seconds of a step, if known."""
    if contender in ("reference", "generate"):
        model = build_model(shape, device, "float32")
        if contender == "reference":
            return lambda inputs: run_reference(model, random_work(inputs))
        return lambda inputs: run_generate(model, random_work(inputs), rows)
    decoder = build_decoder(shape, rows, device, dtype_of(contender))
    return lambda inputs: run_decoder(decoder, random_work(inputs))


def dtype_of(contender: str) -> str:
    """Return what a contender computes in."""
    return "bfloat16" if contender.endswith("bfloat16") else "float32"


# The floor: nothing but the matrix products.


def products(shape: str, device: str, dtype: str) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return the weights, ``(in, out)``, of all layers, and of the head."""
    model = build_model(shape, device, dtype)
    head = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not head]
    weights = [m.weight.detach() if isinstance(m, Conv1D) else m.weight.detach().T for m in layers]
    return weights, head.weight.detach().T


def product_seconds(weights: Sequence[torch.Tensor], rows: int) -> float:
    """Return the time of multiplying ``rows`` rows with each weight, by PyTorch's stock kernels."""
    inputs = [torch.randn(rows, weight.shape[0]).to(weight) for weight in weights]

    def multiply() -> None:
        for hidden, weight in zip(inputs, weights, strict=True):
            hidden @ weight

    return min(timed(multiply)[0] for _ in range(8))


@dataclass(frozen=True)
class Floor:
    """Seconds of nothing but matrix products."""

    step: float
    """For one step of all rows."""
    input: float
    """For an input's row-tokens, in full steps, and its prompts' tokens."""


def floor_of(shape: str, rows: int, device: str, dtype: str, inputs: int) -> Floor:
    """Measure the matrix products of a shape."""
    layers, head = products(shape, device, dtype)
    step = product_seconds([*layers, head], rows)
    prompt_tokens = sum(len(prompt) - 1 for prompts in random_work(inputs) for prompt in prompts)
    chunk = 1024
    prefill = product_seconds(layers, chunk)
    return Floor(step, (row_tokens(inputs) / rows * step + prompt_tokens / chunk * prefill) / inputs)


def row_tokens(inputs: int) -> int:
    """Return the tokens that steps compute: the length of each text times its prompts."""
    lengths = planned_lengths(inputs)
    return sum(int(lengths[:, label].sum()) * (1 + label) for label in range(LABELS))


# Measuring.


@dataclass
class Measured:
    """Results of one contender."""

    seconds: list[float] = field(default_factory=list)
    """Per input, one per repetition."""
    peak_bytes: int = 0
    steps: list[float] = field(default_factory=list)
    """Median seconds of a step of all rows, one per repetition. Empty if there was none."""


def measure(
    contenders: dict[str, Callable[[int], float | None]], inputs: int, repeats: int, device: str
) -> dict[str, Measured]:
    """Time the contenders in turn, after one warm-up of each."""
    found = {name: Measured() for name in contenders}
    for write in contenders.values():
        write(2)
    for number in range(1, repeats + 1):
        for name, write in contenders.items():
            click.echo(f"round {number} of {repeats}: {name}", err=True)
            size, memory = INPUTS.get(name, inputs), Memory(device)
            memory.start()
            seconds, step = timed(partial(write, size))
            found[name].seconds.append(seconds / size)
            found[name].steps += [] if step is None else [step]
            found[name].peak_bytes = max(found[name].peak_bytes, memory.stop())
    return found


def ratios(found: dict[str, Measured], slower: str, faster: str) -> list[float]:
    """Return how many times faster one contender was, in each repetition."""
    return [slow / fast for slow, fast in zip(found[slower].seconds, found[faster].seconds, strict=True)]


def rows_of_table(found: dict[str, Measured], floors: dict[str, Floor], inputs: int) -> list[list[str]]:
    """Return one line per contender."""
    lines = []
    for name, measured in found.items():
        against = [spread(ratios(found, base, name)) if base in found else "" for base in CONTENDERS[:2]]
        median = statistics.median(measured.seconds)
        speed = f"{row_tokens(inputs) / inputs / median:,.0f}"
        share = f"{floors[name].input / median:.0%}" if name in floors else ""
        step = statistics.median(measured.steps) if measured.steps else None
        of_step = [f"{1000 * step:.1f}", f"{floors[name].step / step:.0%}"] if step else ["", ""]
        lines.append([name, f"{median:.3f}", *against, speed, share, *of_step, f"{measured.peak_bytes / 1e6:.0f}"])
    return lines


def spread(values: Sequence[float]) -> str:
    """Return median, lowest and highest."""
    return f"{statistics.median(values):.1f}x ({min(values):.1f} .. {max(values):.1f})"


HEADER = ["contender", "s / input", "vs reference", "vs generate", "row-tokens / s", "of floor"]
HEADER += ["ms / step", "of its floor", "peak MB"]


@click.command()
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    type=click.Choice(list(SHAPES)),
    default=["gpt2-4x256", "llama-4x256"],
    show_default=True,
)
@click.option(
    "--contender", "chosen", multiple=True, type=click.Choice(CONTENDERS), default=CONTENDERS[:3], show_default=True
)
@click.option("--device", default="cpu", show_default=True)
@click.option("--rows", default=128, show_default=True)
@click.option(
    "--inputs", default=48, show_default=True, help="Inputs a repetition; the reference takes 2, generate 24."
)
@click.option("--repeats", default=3, show_default=True)
def main(shapes: Sequence[str], chosen: Sequence[str], device: str, rows: int, inputs: int, repeats: int) -> None:
    """Print how many times faster the decoder is than the reference procedure and generate()."""
    click.echo(f"{machine(device)}, {rows} rows, torch {torch.__version__}; medians of {repeats} interleaved rounds")
    click.echo(f"{LABELS} labels x {SAMPLES} texts an input. Texts end at planned lengths (mean 15, sd 6, within 2 and")
    click.echo("40), the same for all but the reference, which always takes 40 steps. A round is")
    click.echo(f"{inputs} inputs, for the reference {INPUTS['reference']}, for generate() {INPUTS['generate']}.")
    for shape in shapes:
        found = measure({name: build(name, shape, rows, device) for name in chosen}, inputs, repeats, device)
        floors = {name: floor_of(shape, rows, device, dtype_of(name), inputs) for name in chosen if name != "reference"}
        click.echo(f"\n{shape}\n{table(HEADER, rows_of_table(found, floors, inputs))}")


if __name__ == "__main__":
    main()
