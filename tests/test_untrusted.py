"""Arbitrary text goes through spec, decoder, files, filter, card and report: shown, never obeyed, never lost."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dino_pipeline.cards.card import HandWritten, card_text, split_card
from dino_pipeline.cards.document import code_block, code_span, escape_markdown, markdown_table
from dino_pipeline.decoding.decoder import Decoder
from dino_pipeline.decoding.engine import Request
from dino_pipeline.decoding.tokenization import NEVER
from dino_pipeline.examples import Example, read_examples, write_examples
from dino_pipeline.options import Sampling
from dino_pipeline.run import Run
from dino_pipeline.spec import X1, TaskSpec
from tests.commands import invoke
from tests.pairs import Words
from tests.test_report import Reader
from tests.toys import char_tokenizer, tiny_model

NASTY = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "---\nlicense: mit\n---\n# owned",
    "| a | b |\n|---|---|\n[x](javascript:alert(1)) ```sh\nrm -rf ~\n```",
    "{{ 7 * 7 }} {% for x in y %} ${HOME} `id`",
    "=cmd|'/c calc'!A1",
    f'{X1} <TOPIC> say «{X1}» "quoted"',
    "\u202egnp.exe\u202c \u2066hidden\u2069 \u200b zero",
    "\0\x07\x1b[31mred\x1b[0m\r\nline",
    "../../../../etc/passwd",
    "'; DROP TABLE keys; --",
    "\U000e0041\U000e0042 tags \ufffe \ud7ff",
    "e\u0301" * 40 + "\u0300" * 60,
)
texts = st.one_of(st.sampled_from(NASTY), st.text(st.characters(codec="utf-8"), max_size=80))


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(tiny_model("gpt2"), char_tokenizer(), rows=4)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=texts, value=texts)
def test_a_text_stands_in_its_prompt_as_it_is_and_nothing_in_it_is_filled(
    decoder: Decoder, text: str, value: str
) -> None:
    raw = {
        "task_name": "t",
        "description": value,
        "variables": {"TOPIC": [value or "x"]},
        "stop": "\x01",
        "labels": {"a": {"instruction": f"On <TOPIC>: \x01{X1}\x01 then \x01"}},
    }
    spec = TaskSpec.model_validate(raw)
    prompt = spec.prompt("a", text, {"TOPIC": value})
    assert prompt == f"On {value}: \x01{text}\x01 then \x01"
    encoded = decoder.encode([prompt[:60]])[0]
    asked = [Request((encoded or (1,),), (1, text))]
    (written,) = decoder.sample(asked, Sampling(max_new_tokens=3, top_k=0, top_p=1.0), stop=NEVER)
    json.dumps(written.text).encode()


@settings(max_examples=150)
@given(text=texts, other=texts)
@example("a\x85b", "\x85")
def test_cards_hold_a_text_and_no_more(text: str, other: str) -> None:
    front = {"license": "mit", "pretty_name": text, "tags": [other]}
    said = "\n\n".join([escape_markdown(text), code_block(text, "text"), markdown_table(["a", "b"], [[text, other]])])
    read, body = split_card(card_text(front, said, HandWritten()))
    assert read == yaml.safe_load(yaml.safe_dump(front))
    assert body.count("\n---\n") <= f"\n{said}\n".count("\n---\n")
    row = markdown_table(["a", "b"], [[text, other]]).split("\n")
    assert len(row) == 3, "a text opens no row"
    assert row[2].replace("\\|", "").count("|") == 3, "nor a column"
    assert "<" not in row[2], "nor a tag"
    fence = code_block(text).split("\n")
    assert all(line.strip() != fence[0] for line in fence[1:-1]), "nor does it close its block"
    span = code_span(text)
    mark = span[: len(span) - len(span.lstrip("`"))]
    assert mark not in span[len(mark) : -len(mark)] and "\n" not in span, "nor its span"


@pytest.mark.slow
@settings(max_examples=3)
@given(st.lists(st.tuples(texts, texts), min_size=6, max_size=12))
@example([*zip(NASTY, reversed(NASTY), strict=True)])
def test_a_file_of_anything_goes_the_whole_way(pairs: list[tuple[str, str]]) -> None:
    sound = [Example(each.text_a, each.text_b, each.label) for each in Words().pairs(12, 1) if each.label != 0.5]
    rows = [*(Example(a, b, float(at % 2)) for at, (a, b) in enumerate(pairs)), *sound]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_examples(folder / "data.jsonl", rows)
        assert read_examples(folder / "data.jsonl") == rows
        run = Run(folder / "run")
        call = ("filter", folder / "data.jsonl", "--run", run.path, "--random-pairs", "0", "--workers", "1")
        invoke(*call, "--no-balance", "--labels", "hard", "--dev-share", "0")
        kept = [(each.text_a, each.text_b) for path in (run.train, run.dropped) for each in read_examples(path)]
        assert sorted(kept) == sorted((each.text_a, str(each.text_b)) for each in rows), "each is kept or dropped"
        assert not [each for each in read_examples(run.train) if "\u202e" in each.text_a + str(each.text_b)]
        invoke("report", run.path)
        page = Reader(run.report.read_text(encoding="utf-8"))
        assert page.tags["script"] == 1
        assert not page.open
        invoke("publish", run.path, "--repo", "a/b", "--license", "mit", "--dry-run")
        front, _ = split_card((run.hub / "dataset" / "README.md").read_text(encoding="utf-8"))
        assert front["license"] == "mit"
