"""Measure how well generators follow their instructions, on the pocket grammar, where each text can be graded.

    python -m tools.pocket.fidelity [MODEL...] [--num-inputs 200] [--samples 3] [--seed 42 --seed 43] [--output FILE]

A generator writes inputs, then texts for them under the three instructions of the STS spec, at several strengths of
debiasing. The grammar's reader grades each text: a text that it cannot read is not a sentence of the grammar, and one
that it can read has an exact similarity to the input.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev

import click
import torch

from dino_pipeline.decoding.decoder import Decoder
from dino_pipeline.decoding.engine import Completion, Request
from dino_pipeline.decoding.loading import load_decoder, resolve_model
from dino_pipeline.errors import DinoError
from dino_pipeline.files import write_json
from dino_pipeline.generate_options import ModelOptions
from dino_pipeline.options import Sampling
from dino_pipeline.progress import Console, Progress, Reporter, table
from dino_pipeline.spec import TaskSpec
from dino_pipeline.text import distinct_n, normalise
from tools.pocket.corpus import RELATIONS, prompt, relation_holds
from tools.pocket.frames import Frame, similarity
from tools.pocket.reader import parse

DECAYS = (0.0, 10.0, 30.0, 100.0)
"""Strengths of debiasing: off, two weaker ones, and the paper's."""
LABELS = dict(zip(("1", "0.5", "0"), RELATIONS, strict=True))
"""Label of the STS spec -> the relation that its instruction asks for."""
INPUT_SAMPLING = Sampling(top_k=0, top_p=0.95)
"""Inputs need variety: with top-k 5 they repeat a few sentences."""


@dataclass(frozen=True)
class Quality:
    """Quality of the texts of one seed, label and strength of debiasing; shares of all texts, 0 to 1."""

    label: str
    """``inputs``, or a label of the STS spec."""
    decay: float | None
    """None without debiasing: for inputs, and for a label without counter-labels."""
    seed: int
    texts: int
    stopped: float
    """Share that ended at the quotation mark."""
    parsed: float
    """Share that are sentences of the grammar."""
    novel: float
    """Share that differ from their input and from earlier texts of the same input and label, in normal form."""
    distinct_2: float
    """Distinct bigrams of words / all bigrams (Li et al. 2016)."""
    strict: float | None
    """Share in the label's relation to their input (see `relation_holds`). Texts that cannot be read are not."""
    gold: float | None
    """Mean similarity of the readable texts to their inputs. None if no text can be read."""


_Wanted = tuple[str, str | None, int]
"""Label, input and sample number of a text to write."""


@dataclass(frozen=True)
class _Text:
    """A text and its input."""

    input: str | None
    completion: Completion

    @property
    def text(self) -> str:
        return self.completion.text.strip()


def sts_spec() -> TaskSpec:
    """Return the STS spec that the pocket generator was trained on: the paper's, with the inputs spec inside."""
    labels = list(LABELS.items())
    both = {
        label: {"instruction": prompt(relation, "<X1>"), "counter_labels": [other for other, _ in labels[:at]]}
        for at, (label, relation) in enumerate(labels)
    }
    first = {label: {"instruction": prompt(relation)} for label, relation in labels}
    sampling = {"top_k": INPUT_SAMPLING.top_k, "top_p": INPUT_SAMPLING.top_p}
    inputs = {"task_name": "sts-x1", "labels": first, "sampling": sampling}
    return TaskSpec.model_validate({"task_name": "sts", "labels": both, "inputs": inputs})


def measure(
    decoder: Decoder,
    reporter: Reporter,
    *,
    seed: int = 42,
    num_inputs: int = 200,
    samples: int = 3,
) -> list[Quality]:
    """Let a generator write inputs and texts, and return their quality.

    Args:
        decoder: the generator.
        reporter: follows the progress.
        seed: of all random choices.
        num_inputs: inputs to write. Repeated and unreadable inputs get no texts.
        samples: texts per input, label and decay.

    Returns:
        A row for the inputs, then one for each label and decay.
    """
    spec = sts_spec()
    assert isinstance(spec.inputs, TaskSpec)
    progress = Progress(f"seed {seed}", total=num_inputs)
    wanted: list[_Wanted] = [(list(LABELS)[at % len(LABELS)], None, at // len(LABELS)) for at in range(num_inputs)]
    written = list(_write(decoder, spec.inputs, wanted, INPUT_SAMPLING, seed, progress, reporter))
    qualities = [_quality(written, "inputs", None, seed, {})]
    frames = {each.text: frame for each in written if (frame := parse(each.text))}
    if not frames:
        reporter.note("none of the inputs is a sentence of the grammar: no texts are written for them")
        return qualities
    plan = [
        (label, decay)
        for label, of_label in spec.labels.items()
        for decay in (DECAYS if of_label.counter_labels else (None,))
    ]
    progress.total += len(plan) * len(frames) * samples
    for label, decay in plan:
        wanted = [(label, text, sample) for text in frames for sample in range(samples)]
        drawn = Sampling(decay=decay or 0.0)
        written = list(_write(decoder, spec, wanted, drawn, seed, progress, reporter))
        qualities.append(_quality(written, label, decay, seed, frames))
    reporter.update(progress)
    return qualities


def _write(
    decoder: Decoder,
    spec: TaskSpec,
    wanted: Sequence[_Wanted],
    sampling: Sampling,
    seed: int,
    progress: Progress,
    reporter: Reporter,
) -> Iterator[_Text]:
    """Yield a text for each label, input and sample, in order."""
    requests = []
    for label, text, sample in wanted:
        labels = (label, *spec.labels[label].counter_labels)
        prompts = decoder.encode([decoder.render(spec.prompt(name, text), spec.opening(name)) for name in labels])
        requests.append(Request(tuple(prompts), (seed, spec.digest, text or "", label, sample)))
    completions: dict[int, Completion] = {}
    for completion in decoder.sample(requests, sampling, stop=spec.stop):
        completions[completion.number] = completion
        progress.done += 1
        reporter.update(progress)
    for number, (_, text, _) in enumerate(wanted):
        yield _Text(text, completions[number])


def _quality(written: Sequence[_Text], label: str, decay: float | None, seed: int, frames: dict[str, Frame]) -> Quality:
    read = [parse(each.text) if each.completion.finish == "stop" else None for each in written]
    grades = [
        similarity(frames[each.input], frame) if frame and each.input is not None else None
        for each, frame in zip(written, read, strict=True)
    ]
    graded = [grade for grade in grades if grade is not None]
    strict = [grade is not None and relation_holds(LABELS[label], grade) for grade in grades] if frames else None
    return Quality(
        label=label,
        decay=decay,
        seed=seed,
        texts=len(written),
        stopped=fmean(each.completion.finish == "stop" for each in written),
        parsed=fmean(frame is not None for frame in read),
        novel=_novel(written),
        distinct_2=distinct_n([each.text for each in written], 2),
        strict=None if strict is None else fmean(strict),
        gold=fmean(graded) if graded else None,
    )


def _novel(written: Sequence[_Text]) -> float:
    known: dict[tuple[str | None, str], None] = {(each.input, normalise(each.input or "")): None for each in written}
    before = len(known)
    known.update({(each.input, normalise(each.text)): None for each in written})
    return (len(known) - before) / len(written)


@dataclass(frozen=True)
class Summary:
    """Quality of one label and decay over seeds: (mean, standard deviation or None for one seed) by measure."""

    label: str
    decay: float | None
    values: dict[str, tuple[float, float | None] | None]


MEASURES = ("stopped", "parsed", "novel", "distinct_2", "strict", "gold")


def summarise(qualities: Sequence[Quality]) -> list[Summary]:
    """Return the quality over seeds of each label and decay, in order of first occurrence."""
    groups: dict[tuple[str, float | None], list[Quality]] = {}
    for quality in qualities:
        groups.setdefault((quality.label, quality.decay), []).append(quality)
    return [
        Summary(label, decay, {name: _mean([asdict(quality)[name] for quality in group]) for name in MEASURES})
        for (label, decay), group in groups.items()
    ]


def _mean(values: Sequence[float | None]) -> tuple[float, float | None] | None:
    there = [value for value in values if value is not None]
    return (fmean(there), stdev(there) if len(there) > 1 else None) if there else None


def fidelity_table(summaries: Sequence[Summary]) -> str:
    """Return one line for the inputs and one for each label and strength of debiasing."""
    header = ["texts", "decay", "stopped", "parsed", "novel", "distinct-2", "strict fidelity", "mean gold"]
    rows = []
    for summary in summaries:
        texts = summary.label if summary.label == "inputs" else f"label {summary.label}"
        decay = "-" if summary.decay is None else "off" if summary.decay == 0 else f"{summary.decay:g}"
        rows.append([texts, decay, *(_mean_and_spread(summary.values[name]) for name in MEASURES)])
    return table(header, rows)


def _mean_and_spread(value: tuple[float, float | None] | None) -> str:
    if value is None:
        return "-"
    mean, spread = value
    return f"{mean:.3f}" if spread is None else f"{mean:.3f} ± {spread:.3f}"


def _load(model: str) -> Decoder:
    """Return the generator of a folder, a Hub id, or ``pocket``, on a GPU if there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_decoder(resolve_model(ModelOptions(model=model, chat="off"), device), device=device)


@click.command()
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@click.option("--num-inputs", type=click.IntRange(1), default=200, show_default=True, help="Inputs to write.")
@click.option("--samples", type=click.IntRange(1), default=3, show_default=True, help="Texts per input and label.")
@click.option("--seed", "seeds", type=int, multiple=True, default=(42,), show_default=True, help="Repeat for a spread.")
@click.option("--output", type=click.Path(path_type=Path), help="Write all values, seed by seed, as JSON.")
def main(models: Sequence[str], num_inputs: int, samples: int, seeds: Sequence[int], output: Path | None) -> None:
    """Grade what generators (MODELs by folder or Hub id; pocket if none is named) write, by the pocket grammar."""
    results = []
    seeds = list(dict.fromkeys(seeds))
    try:
        for model in models or ["pocket"]:
            decoder = _load(model)
            qualities: list[Quality] = []
            with closing(Console()) as console:
                for seed in seeds:
                    qualities += measure(decoder, console, seed=seed, num_inputs=num_inputs, samples=samples)
            results.append({"model": model, "qualities": [asdict(quality) for quality in qualities]})
            listed = ", ".join(map(str, seeds))
            click.echo(f"{model}: {num_inputs} inputs, {samples} texts per input and label, seeds {listed}")
            click.echo(fidelity_table(summarise(qualities)))
    except DinoError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    if output:
        settings = {"suite": "pocket-generation", "num_inputs": num_inputs, "samples": samples}
        write_json(output, {**settings, "models": results})


if __name__ == "__main__":
    main()
