"""Arbitrary text goes through spec, decoder, files, filter, card and report: shown, never obeyed, never lost."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from dino_pipeline.cards.card import HandWritten, card_text, split_card
from dino_pipeline.cards.document import DataTable
from dino_pipeline.decoding.decoder import Decoder
from dino_pipeline.decoding.engine import Request
from dino_pipeline.decoding.tokenization import NEVER
from dino_pipeline.display import (
    code_block,
    code_span,
    escape_html,
    escape_markdown,
    markdown_link,
    markdown_table,
    spelt,
    visible,
    yaml_text,
)
from dino_pipeline.examples import Example, read_examples, write_examples
from dino_pipeline.options import Sampling
from dino_pipeline.progress import table, table_html
from dino_pipeline.publishing import charts
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


MARKDOWN = MarkdownIt("gfm-like", {"linkify": False, "html": True})
"""Renders as the Hub does: with tables and, if a card holds any, raw HTML."""
LABELS = (
    *("no", "1.0", "~", "null", "a: b", "# x", "!!python/object:os.system", "- x", "+ x", "1. x", "2) x", "---", "==="),
    *("|", "a|b", "a\\|b", "`", "```", "``` |", "[x](javascript:alert(1))", "![x](y)", "<b>", "&amp;", "&", "*x*"),
    *("_x_", "\\", "a\nb", "a\r\nb", "a\u2028b", "a\x85b", "\ufeffa", "    four", "\ttab", " ", "", "\u202egnp.exe"),
    *("\x1b[2J", "x" * 10_000, "{{ 1 }}", "$x$", "~~x~~", "> x", "http://a_b_c.example", 'id="x', "url(#x", "#010203"),
    *("var(--ink)", "label=2", "%s"),
)
BLOCKS = ("h1", "h2", "p", "code", "pre", "table", "thead", "tbody", "tr", "th", "td", "em", "strong", "ul", "li")
names = st.one_of(st.sampled_from(LABELS), texts)


class Shown(HTMLParser):
    """Collects what a reader of HTML sees in each element, and all tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.seen: dict[str, list[str]] = {}
        self.attributes: list[str | None] = []
        self.within: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [value for _, value in attrs]
        if tag != "img":
            self.seen.setdefault(tag, []).append("")
            self.within.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag == "img" or self.within.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.within:
            self.seen[self.within[-1]][-1] += data


def as_read(text: str) -> str:
    """A text as a reader sees it on one line."""
    return " ".join(visible(text).split())


@settings(max_examples=200)
@given(text=names, other=names)
def test_markdown_shows_a_text_and_does_nothing_else(text: str, other: str) -> None:
    for shown in (escape_markdown(text), f"before {escape_markdown(text)}", f"- {escape_markdown(text)}"):
        page = Shown(MARKDOWN.render(shown))
        assert set(page.tags) <= ({"p"} if shown[:2] != "- " else {"ul", "li", "p"})
        (seen,) = [seen for tag in ("p", "li") for seen in page.seen.get(tag, [])] or [""]
        assert seen.strip() == (("before " if shown[:6] == "before" else "") + as_read(text)).strip()
    page = Shown(MARKDOWN.render(markdown_table([text, other], [[other, text], ["1", text]])))
    assert Counter(page.tags) == Counter(table=1, thead=1, tbody=1, tr=3, th=2, td=4)
    assert [each.strip() for each in page.seen["th"]] == [as_read(text), as_read(other)]
    assert [each.strip() for each in page.seen["td"]] == [as_read(other), as_read(text), "1", as_read(text)]
    page = Shown(MARKDOWN.render(f"x {code_span(text)} y"))
    assert page.tags == ["p", "code"]
    assert page.seen["code"][0].strip() == as_read(text)
    page = Shown(MARKDOWN.render(code_block(text, "text")))
    assert page.tags == ["pre", "code"]
    assert page.seen["code"] == [f"{spelt(text)}\n"]
    page = Shown(MARKDOWN.render(markdown_link(text, f"https://a.example/{other}")))
    assert page.tags == ["p", "a"]
    assert page.seen["a"][0].strip() == as_read(text)
    assert Shown(MARKDOWN.render(markdown_link(text, f"javascript:{other}"))).tags == (["p"] if as_read(text) else [])


@settings(max_examples=200)
@given(text=names, other=names)
def test_yaml_reads_back_as_the_same_values(text: str, other: str) -> None:
    fields = {"pretty_name": text, "tags": [other, text], "of": {other: text}, "license": "mit"}
    assert yaml.safe_load(yaml_text(fields)) == fields
    assert split_card(card_text(fields, escape_markdown(text), HandWritten()))[0] == fields


@settings(max_examples=200)
@given(text=names, other=names)
def test_html_and_consoles_show_a_text_and_do_nothing_else(text: str, other: str) -> None:
    page = Shown(f'<p title="{escape_html(text)}">{escape_html(other)}</p>')
    assert page.tags == ["p"]
    # a parser may replace what is no character of HTML
    assert page.seen["p"] == [spelt(other)] and page.attributes == [spelt(text)]
    page = Shown(table_html(text, [text, other], [[other, text]]))
    assert Counter(page.tags) == Counter(p=1, table=1, tr=2, th=2, td=2)
    assert page.seen["td"] == [spelt(other), spelt(text)]
    lines = table([text, other], [[other, text]]).split("\n")
    assert len(lines) == 3 and len(set(map(len, lines))) == 1
    assert not any(re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", line) for line in lines)
    spelt(text).encode()


@pytest.mark.parametrize("name", ["#010203", 'id="x', "url(#x", "<b>&amp;", "$x$ \\frac", "a\x1bb", "\ufffe"])
def test_pictures_show_a_name_as_it_is(name: str) -> None:
    numbers = DataTable(name, ["label"], [[name]])
    curves = {f"_{name}": [(0.0, 1.0), (1.0, 2.0)]}
    picture = charts.draw_picture("p", name, numbers, lambda panels: charts.draw_lines(panels, curves, "x"), height=2.0)
    page = Shown(picture.svg)
    assert f"_{spelt(name)}" in map(str.strip, page.seen["text"])
    assert spelt(name) in page.attributes
    assert not {"b", "script"} & {*page.tags}


@pytest.mark.slow
def test_labels_of_anything_stand_in_cards_and_reports_as_they_are(tmp_path: Path) -> None:
    labels = [label for label in LABELS if label.strip() and "\0" not in label]
    words = Words()
    rows = [Example(words.sentence(), None, label) for _ in range(4) for label in labels]
    write_examples(tmp_path / "data.jsonl", rows)
    run = Run(tmp_path / "run")
    invoke("filter", tmp_path / "data.jsonl", "--run", run.path, "--workers", "1", "--label-type", "class")
    said = invoke("publish", run.path, "--repo", "a/b", "--license", "mit", "--dry-run")
    assert "\x1b" not in said
    front, body = split_card((run.hub / "dataset" / "README.md").read_text(encoding="utf-8"))
    (feature,) = [each for each in front["dataset_info"]["features"] if each["name"] == "label"]
    assert set(feature["dtype"]["class_label"]["names"].values()) == set(labels)
    page = Shown(MARKDOWN.render(body))
    assert {*page.tags} <= {*BLOCKS, "a", "img"}
    assert page.tags.count("img") == 2, "of the funnel and the balance"
    steps = page.seen["th"]
    assert {as_read(label) for label in labels} <= {each.strip() for each in steps}
    width = len(labels) + 2
    assert [*map(str.strip, steps[steps.index("step") :][:width])][-1] == "all"
    report = Reader(run.report.read_text(encoding="utf-8"))
    assert report.tags["script"] == 1 and not report.tags["b"] and not report.open


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
