"""How much faster the slot decoder writes than the procedure of the paper's reference.

    python -m benchmarks.decoder [--shape gpt2-small] [--repeats 5]

Contenders, interleaved in one process on the same model with random weights:

- reference: one (input, label) at a time; its samples and their counter-prompts are one left-padded batch; always 40
  steps; debiasing in a loop over samples; the text is cut afterwards.
- slots: `dino_pipeline.decoder`. Random weights never write a quotation mark, so each sample ends at a length
  planned beforehand (normal, mean 15, standard deviation 6, within 2 and 40).
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import click
import numpy as np
import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from dino_pipeline.decoder import DTYPES, Decoder, Request, _Text
from dino_pipeline.sampling import Sampling
from dino_pipeline.slots import Prompt
from dino_pipeline.stops import Ending, StopRule

VOCAB = 50257
SHAPES = {
    "gpt2-124m": GPT2Config(vocab_size=VOCAB),
    "gpt2-xl": GPT2Config(vocab_size=VOCAB, n_embd=1600, n_layer=48, n_head=25),
    "gpt2-small": GPT2Config(vocab_size=VOCAB, n_embd=256, n_layer=4, n_head=4),
    "llama-small": LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=1024,
        tie_word_embeddings=True,
    ),
}
SAMPLING = Sampling()
COUNTERS = (0, 1, 2)
"""Counter-prompts of the three labels of the STS spec."""
SAMPLES = 5
REFERENCE_INPUTS = 2


def random_prompts(inputs: int) -> list[list[Prompt]]:
    """Return for each input three prompts (one a label) of 35 to 60 random tokens."""
    draw = np.random.default_rng(0)
    lengths = np.sort(draw.integers(35, 58, inputs))
    return [[tuple(draw.integers(0, VOCAB - 1, length + label).tolist()) for label in range(3)] for length in lengths]


def groups(prompts: Sequence[Prompt]) -> list[tuple[Prompt, ...]]:
    """Return each label's own prompt and those it counters: label k counters all labels before it."""
    return [(prompts[count], *prompts[:count]) for count in COUNTERS]


class PlannedDecoder(Decoder):
    """Ends each text at its planned length, as random weights write no quotation marks."""

    planned: Sequence[int] = ()

    def _ending(self, text: _Text, rule: StopRule, max_new_tokens: int) -> Ending | None:
        return Ending("", "stop") if len(text.tokens) == self.planned[text.number] else None


def planned_lengths(count: int) -> list[int]:
    """Return text lengths as texts of a language model have them."""
    return np.random.default_rng(1).normal(15, 6, count).round().clip(2, 40).astype(int).tolist()


def run_slots(decoder: PlannedDecoder, inputs: int) -> None:
    """Write all texts with the slot decoder."""
    requests = [
        Request(group, (number, label, sample))
        for number, prompts in enumerate(random_prompts(inputs))
        for label, group in enumerate(groups(prompts))
        for sample in range(SAMPLES)
    ]
    decoder.planned = planned_lengths(len(requests))
    written = list(decoder.sample(requests, SAMPLING))
    assert len(written) == len(requests)


@torch.inference_mode()
def run_reference(decoder: Decoder, inputs: int) -> None:
    """Write all texts the reference's way."""
    for prompts in random_prompts(inputs):
        for group in groups(prompts):
            reference_group(decoder.model, group)


def reference_group(model: PreTrainedModel, group: Sequence[Prompt]) -> Tensor:
    """Write the samples of one (input, label): rows are prompt-major, left-padded, always all steps."""
    longest = max(map(len, group))
    rows = [(prompt, longest - len(prompt)) for prompt in group for _ in range(SAMPLES)]
    tokens = torch.tensor([(0,) * pad + prompt for prompt, pad in rows], device=model.device)
    mask = torch.tensor([[0] * pad + [1] * len(prompt) for prompt, pad in rows], device=model.device)
    cache, written = None, tokens
    for _ in range(SAMPLING.max_new_tokens):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        output = model(
            input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        cache = output.past_key_values
        chosen = reference_choice(output.logits[:, -1].float())
        tokens = chosen.repeat(len(group))[:, None]
        written = torch.cat([written, tokens], dim=-1)
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=-1)
    return written[:, longest:]


def reference_choice(logits: Tensor) -> Tensor:
    """Debias sample by sample, then top-k, top-p and a draw."""
    probs = logits.softmax(-1)
    for sample in range(SAMPLES):
        counters = probs[sample + SAMPLES :: SAMPLES]
        if len(counters):
            excess = (counters.amax(0) - probs[sample]).clamp(min=0)
            probs[sample] *= (-SAMPLING.decay * excess).exp().clamp(min=SAMPLING.floor)
    own = probs[:SAMPLES] / probs[:SAMPLES].sum(-1, keepdim=True)
    top, tokens = own.topk(SAMPLING.top_k)
    top = top / top.sum(-1, keepdim=True)
    top[top.cumsum(-1) - top > SAMPLING.top_p] = 0
    return tokens.gather(-1, torch.multinomial(top, 1)).squeeze(-1)


def build_decoder(shape: str, rows: int, device: str, dtype: str) -> PlannedDecoder:
    """Return a decoder over a model of the shape with random weights."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(models.WordLevel({f"w{token}": token for token in range(VOCAB)}, unk_token="w0"))
    with torch.device(device):  # a CPU takes minutes to draw the weights of gpt2-xl
        model = AutoModelForCausalLM.from_config(SHAPES[shape], dtype=DTYPES[dtype]).eval()
    return PlannedDecoder(model, PreTrainedTokenizerFast(tokenizer_object=tokenizer), rows=rows)


@dataclass(frozen=True)
class Measured:
    """Seconds per input of both contenders, one pair a repetition."""

    reference: list[float]
    slots: list[float]

    def ratios(self) -> list[float]:
        """Return how many times faster the slots were, in each repetition."""
        return [slow / fast for slow, fast in zip(self.reference, self.slots, strict=True)]


def machine(device: str) -> str:
    """Name what is measured."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def seconds(work: Callable[[], None]) -> float:
    """Return the wall time of a call."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(decoder: PlannedDecoder, inputs: int, repeats: int) -> Measured:
    """Time both contenders in turn, after one warm-up of each."""
    run_reference(decoder, 1)
    run_slots(decoder, 2)
    measured = Measured([], [])
    for _ in range(repeats):
        measured.reference.append(seconds(lambda: run_reference(decoder, REFERENCE_INPUTS)) / REFERENCE_INPUTS)
        measured.slots.append(seconds(lambda: run_slots(decoder, inputs)) / inputs)
    return measured


@click.command()
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    type=click.Choice(list(SHAPES)),
    default=["gpt2-124m", "gpt2-small", "llama-small"],
)
@click.option("--device", default="cpu", show_default=True)
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="float32", show_default=True)
@click.option("--rows", default=128, show_default=True)
@click.option("--inputs", default=48, show_default=True, help="Inputs of the slot decoder; the reference takes 2.")
@click.option("--repeats", default=3, show_default=True)
def main(shapes: Sequence[str], device: str, dtype: str, rows: int, inputs: int, repeats: int) -> None:
    """Print how many times faster the slot decoder is than the reference procedure."""
    click.echo(f"{machine(device)}, {dtype}, {rows} rows, torch {torch.__version__}")
    click.echo(f"3 labels x {SAMPLES} samples an input; slots end at planned lengths, the reference after 40 steps")
    click.echo(f"{'shape':12} {'reference':>12} {'slots':>12} {'ratio':>8} {'min':>6} {'max':>6}")
    for shape in shapes:
        found = measure(build_decoder(shape, rows, device, dtype), inputs, repeats)
        ratios = found.ratios()
        slow, fast = statistics.median(found.reference), statistics.median(found.slots)
        click.echo(
            f"{shape:12} {slow:9.3f} s/i {fast:9.3f} s/i {statistics.median(ratios):7.1f}x"
            f" {min(ratios):5.1f}x {max(ratios):5.1f}x"
        )


if __name__ == "__main__":
    main()
