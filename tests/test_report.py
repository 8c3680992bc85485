from __future__ import annotations

import base64
import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from dino_pipeline.cards.document import DataTable
from dino_pipeline.display import visible
from dino_pipeline.evaluation.scores import Figure as ScoreFigure
from dino_pipeline.examples import Example, read_examples, write_examples
from dino_pipeline.progress import SilentReporter
from dino_pipeline.publishing import charts, report_data
from dino_pipeline.publishing.report import SECTIONS
from dino_pipeline.publishing.report_data import ReportSource, SectionMissing
from dino_pipeline.publishing.run_texts import RunTexts, label_name
from dino_pipeline.record import RunRecord
from dino_pipeline.run import Run
from tests.commands import files, invoke, refused

pytestmark = pytest.mark.slow

OLD_RUN = Path(__file__).parent / "data" / "run-format-2"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = [
    '<script>document.title="broken"</script>',
    '"><img src=x onerror=alert(1)>',
    "</script></style></td></table><h1>big</h1>",
    "{{ 7 * 7 }} {% for %}",
    "$\\frac{a}{b$ cost 5$ & more",
    "safe\u202etxt.exe \u2066 hidden\u200b \x07bell",
    "日本語 اَلْعَرَبِيَّةُ हिन्दी 👩‍👩‍👧",
    "long " * 3000,
]


@pytest.fixture(scope="module")
def whole(pocket_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that went the whole way, with its report."""
    run = shutil.copytree(pocket_run, tmp_path_factory.mktemp("runs") / "whole")
    said = invoke("report", run)
    assert "left out" not in said
    assert "9 pictures" in said
    return run


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from a stranger's file: texts and class names that try to break out."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [
        Example(f"{text} number {at} {label}", f"{EVIL[(at + 1) % len(EVIL)]} answer {at}", label)
        for at, text in enumerate(EVIL * 5)
        for label in ("<b>bold</b>", "$plain$")
    ]
    write_examples(folder / "strange.jsonl", rows)
    invoke("filter", folder / "strange.jsonl", "--run", folder / "strange", "--near-duplicates", "0")
    invoke("report", folder / "strange")
    return folder / "strange"


class Reader(HTMLParser):
    """Notes the ids, tags and addresses of a page, and what does not close."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.tags: Counter[str] = Counter()
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.ids += [value or "" for name, value in attributes if name == "id"]
        self.addresses += [value or "" for name, value in attributes if name in {"src", "href", "xlink:href", "action"}]
        if tag not in {"meta", "input", "br", "img", "link"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_whole_run_has_every_section_and_needs_nothing_else(whole: Path) -> None:
    page = (whole / "report.html").read_text()
    read = Reader(page)
    assert read.open == []
    assert {name for name, *_ in SECTIONS} <= set(read.ids)
    assert len(read.ids) == len(set(read.ids)), "pictures do not share names"
    assert all(address.startswith("#") for address in read.addresses)
    assert {address[1:] for address in read.addresses} <= set(read.ids)
    assert not re.search(r"url\((?!#)|@import|<link|<iframe", page)
    script = re.search(r"<script>(.*)</script>", page, re.DOTALL)
    assert script
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    pictures = sorted(path.stem for path in (whole / "pictures").iterdir())
    assert pictures == sorted(
        ["balance", "curves", "diversity", "funnel", "lengths", "losses", "margins", "scores", "similarity"]
    )
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in (whole / "pictures").iterdir())
    assert read.tags["svg"] == len(pictures)
    assert page.count('role="img"') == len(pictures)
    for said in ("Task: Write two sentences that mean the same thing.", "not contrasted", "contrasted with 1, 0.5"):
        assert said in page
    assert "training loss" in page and "dev Spearman x 100" in page
    assert "pocket finetuned - pocket before" in page


def test_the_same_run_gives_the_same_report(whole: Path) -> None:
    before = files(whole)
    (whole / "pictures" / "old.png").touch()
    invoke("report", whole)
    assert files(whole) == before


def test_what_is_untrusted_is_shown_and_not_obeyed(strange: Path) -> None:
    page = (strange / "report.html").read_text()
    read = Reader(page)
    assert read.tags["script"] == 1
    assert not read.tags["img"] and not read.tags["b"] and read.tags["h1"] == 1
    for shown in ("&lt;b&gt;bold&lt;/b&gt;", "$plain$", "{{ 7 * 7 }}", "[U+202E]txt.exe", "[U+0007]bell", "日本語"):
        assert shown in page, shown
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x07]", page)
    assert "👩‍👩‍👧" in page
    assert len(page) < 1_500_000, "long texts are cut"
    assert visible("a" * 999).endswith("…")
    for title, reason in (
        ("Task spec and prompts", "the texts were brought, not written from a spec"),
        ("Generation", "the texts were brought, not generated here"),
        ("Training", "dino finetune has not run"),
        ("Scores", "dino evaluate has not run"),
    ):
        assert f"<li>{title}: {reason}.</li>" in page


def test_figures_are_those_of_the_files(tmp_path: Path, whole: Path) -> None:
    texts = RunTexts(Run(whole), tmp_path)
    train, dev = read_examples(whole / "train.jsonl"), read_examples(whole / "dev.jsonl")
    written = [row for path in sorted((whole / "shards").iterdir()) for row in read_examples(path)]
    expected = Counter(label_name(str(row.label)) for row in (*train, *dev))
    assert texts.counts("kept") == dict(sorted(expected.items()))
    assert list(texts.counts("kept")) == ["0", "0.1", "0.5", "0.9"]
    margins = texts.histogram("written", "margin", list(texts.counts("written")))
    assert margins
    assert {label: sum(counts) for label, counts in margins.counts.items()} == {"0": 120, "0.5": 120}
    quantiles = texts.quantiles("kept", "length(text_b)")
    lengths = [len(row.text_b or "") for row in (*train, *dev) if row.label == 0.5]
    assert quantiles["0.5"] == pytest.approx([len(lengths), *np.quantile(lengths, [0.05, 0.5, 0.95])])
    drawn = texts.sample("written", "label, text_b", 7)
    assert Counter(label for label, _ in drawn) == dict.fromkeys(("0.0", "0.5", "1.0"), 7)
    assert {text for _, text in drawn} <= {row.text_b for row in written}
    (tmp_path / "again").mkdir()
    assert drawn == RunTexts(Run(whole), tmp_path / "again").sample("written", "label, text_b", 7)


def test_no_run_and_torn_files_are_named(tmp_path: Path, strange: Path) -> None:
    none = f"error: {tmp_path}: is not a run; name a folder that dino generate or dino filter wrote\n"
    assert refused("report", tmp_path) == none
    torn = shutil.copytree(strange, tmp_path / "torn")
    (torn / "dropped.jsonl").write_text('{"text_a": "a"\n')
    assert "dropped.jsonl: is not what was written" in refused("report", torn)
    assert (torn / "report.html").read_bytes() == (strange / "report.html").read_bytes(), "nothing half-written"


def test_damaged_parts_are_left_out_and_said(tmp_path: Path, whole: Path) -> None:
    damaged = shutil.copytree(whole, tmp_path / "damaged")
    (damaged / "scores.json").write_text('{"scores": []}')
    (damaged / "compare" / "compare.json").write_text('{"rows": [{')
    said = invoke("report", damaged)
    assert "left out: Objectives compared: compare.json is damaged" in said
    (damaged / "scores.json").unlink()
    assert said == invoke("report", damaged)
    assert "left out: Scores: scores.json is not there, damaged, or of another version" in said


def test_what_a_run_lacks_is_said_and_not_drawn(tmp_path: Path) -> None:
    """The shards are gone, and the texts are all of one length: a table needs no picture."""
    run = Run(tmp_path / "run")
    record = RunRecord(generate=Run(OLD_RUN).record().generate)
    write_examples(run.train, [Example(f"Input {at}", "A text", 1.0) for at in range(3)])
    source = ReportSource(run, record, None, RunTexts(run, tmp_path), [], SilentReporter())
    with pytest.raises(SectionMissing, match="the texts of run are not there any more"):
        report_data.diversity(source)
    (numbers,) = report_data.lengths(source)
    assert isinstance(numbers, DataTable)
    assert numbers.rows == [["1", "3", "6", "6", "6"]]


def test_an_interval_that_is_not_known_is_not_drawn() -> None:
    panel = Figure().subplots()
    known, alone, none = (
        ScoreFigure(value=value, low=low, high=high)
        for value, low, high in ((2.0, 1.0, 3.0), (5.0, None, None), (None, None, None))
    )
    charts.draw_intervals([panel], [("a", known), ("b", alone), ("c", none)], "Spearman")
    assert [[*np.asarray(line.get_xdata())] for line in panel.lines] == [[1.0, 3.0], [2.0], [5.0]]


def test_a_folders_name_is_no_column(tmp_path: Path, whole: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "label=2" / "run")
    invoke("filter", run, "--fresh")
    invoke("report", run)
    texts = RunTexts(Run(run), tmp_path)
    assert list(texts.counts("kept")) == ["0", "0.1", "0.5", "0.9"]


def test_many_long_labels_leave_room_for_the_pictures_and_samples(tmp_path: Path) -> None:
    names = [f"_{at:02} a label of some length that nobody would choose" for at in range(50)]
    rows = [Example(f"text {at} of {name}", None, name) for at in range(12) for name in names]
    write_examples(tmp_path / "many.jsonl", rows)
    invoke("filter", tmp_path / "many.jsonl", "--run", tmp_path / "many", "--near-duplicates", "0")
    invoke("report", tmp_path / "many")
    page = (tmp_path / "many" / "report.html").read_text()
    assert all(f'data-label="{name[:39]}' in page for name in names), "samples of every label"
    assert "The 12 most frequent of 50 labels." in page
    lengths = page[page.index('aria-label="How long') :]
    assert all(visible(name, 24) in lengths for name in names[:12]), "the legend names them all"
    assert label_name("1000001") != label_name("1000002")
    assert [label_name(label) for label in ("1.0", "v1.0", "007", "")] == ["1", "v1.0", "007", "(empty)"]


def test_a_reason_of_each_texts_own_does_not_fill_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_rules.py").write_text(
        "def own(example):\n    return example.text_a if 'bad' in example.text_a else None\n"
    )
    rows = [Example(f"{('good', 'bad')[at > 9]} text {at}", None, "one") for at in range(3000)]
    write_examples(tmp_path / "own.jsonl", rows)
    invoke("filter", "own.jsonl", "--run", "own", "--near-duplicates", "0", "--rule", "own_rules:own", "--no-balance")
    invoke("report", "own")
    page = (tmp_path / "own" / "report.html").read_text()
    assert page.count('data-fate="dropped"') == 500
    assert re.search(r"2910 other reasons</th><td[^>]*>2910<", page)


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt install chromium)")


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield found
        found.close()


@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_works_in_a_browser(whole: Path, browser: object, width: int, scheme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[attr-defined]
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    address = (whole / "report.html").as_uri()
    page.goto(address)
    for name, title, _ in SECTIONS:
        assert page.locator(f"#{name} h2").inner_text() == title
    assert page.evaluate("document.documentElement.scrollWidth") == width, "nothing sticks out"
    rows = page.locator("#texts tbody tr")
    every = rows.count()
    assert page.locator("#shown").inner_text() == f"{every} of {every} shown"
    page.select_option("#label", "0.5")
    labels = set(page.locator("#texts tbody tr:not([hidden]) td:first-child").all_inner_texts())
    assert labels == {"0.5"}
    page.select_option("#fate", "dropped")
    assert page.locator("#texts tbody tr:not([hidden])[data-fate=kept]").count() == 0
    page.select_option("#label", "")
    page.select_option("#fate", "kept")
    first = rows.nth(0).locator("td").nth(1).inner_text()
    page.focus("#words")
    page.keyboard.type(first.upper())
    left = page.locator("#texts tbody tr:not([hidden])")
    assert 0 < left.count() < every
    assert all(first.lower() in text.lower() for text in left.all_inner_texts())
    page.fill("#words", "surely no such text")
    assert page.locator("#none").is_visible()
    page.reload()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#content"
    page.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("details").first.locator("table").is_visible()
    brightness = sum(map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]))
    assert brightness > 600 if scheme == "light" else brightness < 200
    ink = page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
    assert ink == page.evaluate("getComputedStyle(document.body).color"), "pictures have the page's colours"
    assert said == []
    assert set(asked) == {address}, "no request leaves the page"
    page.close()


@needs_chromium
def test_untrusted_text_does_nothing_in_a_browser(strange: Path, browser: object) -> None:
    page = browser.new_page()  # type: ignore[attr-defined]
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.goto((strange / "report.html").as_uri())
    assert page.title() == "strange: report"
    page.select_option("#label", "<b>bold</b>")
    assert page.locator("#texts tbody tr:not([hidden])").count() > 0
    assert said == []
    page.close()
