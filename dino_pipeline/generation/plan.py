"""Which shards a run consists of, in what order, and which of them are still to be written."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dino_pipeline.digests import Checksums
from dino_pipeline.examples import iter_examples
from dino_pipeline.generation.writer import GenerateOptions, More, Shard, Task, count_text
from dino_pipeline.progress import Progress, Watch
from dino_pipeline.run import Run
from dino_pipeline.spec import TaskSpec


def plan(run: Run, spec: TaskSpec, options: GenerateOptions, more: Sequence[More]) -> Iterator[Shard]:
    """Yield the shards; they depend on nothing but inputs, labels and samples."""
    asked = [(label, range(options.samples)) for label in spec.labels]
    yield from _shards(run, spec, asked, "", options.shard_size)
    for number, each in enumerate(more, start=1):
        asked = [(each.label, range(each.first, each.first + each.samples))]
        yield from _shards(run, spec, asked, f"more{number:03d}-", options.shard_size)


def _shards(run: Run, spec: TaskSpec, asked: Sequence[tuple[str, range]], prefix: str, size: int) -> Iterator[Shard]:
    lists = _about_inputs(run, asked, size) if spec.needs_inputs else _without_inputs(asked, size)
    for number, tasks in enumerate(lists):
        name = f"{prefix}{number:05d}.jsonl"
        yield Shard(run.shards / name, run.rejected / name, tasks)


def _without_inputs(asked: Sequence[tuple[str, range]], texts: int) -> Iterator[list[Task]]:
    size = max(1, texts // len(asked))
    samples = asked[0][1]
    for first in range(0, len(samples), size):
        yield [Task(None, None, label, sample) for label, samples in asked for sample in samples[first : first + size]]


def _about_inputs(run: Run, asked: Sequence[tuple[str, range]], texts: int) -> Iterator[list[Task]]:
    size = max(1, texts // sum(len(samples) for _, samples in asked))
    inputs = enumerate(stored_inputs(run))
    while some := list(itertools.islice(inputs, size)):
        yield [
            Task(number, text, label, sample) for number, text in some for label, samples in asked for sample in samples
        ]


def input_shards(run: Run, spec: TaskSpec, size: int) -> Iterator[Shard]:
    """Yield without end the shards of a spec that writes inputs, of about so many texts."""
    per_label = -(-size // len(spec.labels))
    for number in itertools.count():
        first, name = number * per_label, f"{number:05d}.jsonl"
        tasks = [Task(None, None, label, first + sample) for sample in range(per_label) for label in spec.labels]
        yield Shard(run.input_shards / name, run.input_rejected / name, tasks)


def stored_inputs(run: Run) -> Iterator[str]:
    """Yield the run's inputs, none where they are not there yet."""
    if run.inputs.exists():
        yield from (example.text_a for example in iter_examples(run.inputs))


def is_whole(shard: Shard, sums: Checksums, watch: Watch) -> bool:
    """Whether a shard was finished and is as it was; one that is not is said."""
    return are_whole([shard.rejected, shard.path], sums, watch)


def are_whole(paths: Sequence[Path], sums: Checksums, watch: Watch) -> bool:
    """Whether files were finished and are as they were; one that is not is said."""
    if not sums.has(*paths):
        return False
    if spoilt := sums.spoilt(*paths):
        watch.note(f"{spoilt}: is not what was written (another checksum): written anew")
    return spoilt is None


def unwritten(
    shards: Iterable[Shard], progress: Progress, spec: TaskSpec, sums: Checksums, watch: Watch
) -> Iterator[Shard]:
    """Yield the shards that are not there yet, until somebody wants to stop, and count the others."""
    for shard in shards:
        if is_whole(shard, sums, watch):
            _count_stored(progress, spec, shard)
        elif watch.stopping():
            return
        else:
            yield shard


def _count_stored(progress: Progress, spec: TaskSpec, shard: Shard) -> None:
    """Count the texts of a shard that an earlier call finished."""
    names = {spec.value(label): label for label in spec.labels}
    before = progress.done
    for path, reason in ((shard.path, None), (shard.rejected, "rejected")):
        for example in iter_examples(path, numeric_labels=spec.is_scored):
            if example.label is not None:
                count_text(progress, names[example.label], example, reason)
        for count in progress.labels.values():
            count.rejected_in_a_row = 0  # the files do not hold the order in which texts were written
    progress.done = before + len(shard.tasks)
    progress.resumed += len(shard.tasks)
