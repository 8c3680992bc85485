"""What Python users get from a stage: examples that behave like a list, and show themselves in a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, overload

from dino_pipeline.examples import Example

if TYPE_CHECKING:
    import datasets
    import pandas

SHOWN = 5
"""Examples that a notebook shows."""


class ExampleList(Sequence[Example]):
    """Examples in a fixed order. Base of the results of stages.

    Args:
        examples: the examples.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        return self.examples[index]

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.summary})"

    @property
    def summary(self) -> str:
        """Return what the list holds, in a line."""
        return f"{len(self)} examples"

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return the examples as dicts with the record's fields."""
        return [asdict(example) for example in self]

    def to_dataset(self) -> datasets.Dataset:
        """Return the examples as a `datasets.Dataset`, a field a column."""
        from datasets import Dataset

        return Dataset.from_list(self.to_dicts())

    def to_pandas(self) -> pandas.DataFrame:
        """Return the examples as a pandas frame, a field a column."""
        import pandas

        return pandas.DataFrame(self.to_dicts())

    def _repr_html_(self) -> str:
        return table_html(self.summary, ("text_a", "text_b", "label"), [_cells(each) for each in self[:SHOWN]])


def _cells(example: Example) -> tuple[str, ...]:
    return tuple("" if value is None else str(value) for value in (example.text_a, example.text_b, example.label))


def table_html(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a small table for a notebook, every cell escaped."""

    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line("td", row) for row in rows)
    return f"<p>{html.escape(title)}</p><table>{line('th', header)}{body}</table>"
