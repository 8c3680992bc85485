"""The specs that come with the project."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from dino_pipeline import pocket
from dino_pipeline.decoding.tokenization import StopRule
from dino_pipeline.examples import read_examples
from dino_pipeline.spec import OPENING, TaskSpec
from dino_pipeline.spec_file import load_spec
from tests.commands import invoke
from tests.test_spec import SPECS

FILES = sorted(SPECS.glob("*.json"))
LANGUAGES = {
    "de": ("Aufgabe: Schreibe zwei Sätze", "„", "“"),
    "es": ("Tarea: Escribe dos oraciones", "«", "»"),
    "fr": ("Tâche : Écris deux phrases", "«", "»"),
    "hi": ("कार्य: दो ऐसे वाक्य लिखिए", "“", "”"),
    "zh": ("任务：写两个", "“", "”"),
}
named = pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])


@named
def test_every_spec_says_what_it_is_and_shows_its_prompts(file: Path) -> None:
    spec = load_spec(file)
    assert spec.description and spec.language
    assert f"`{file.stem}`" in (SPECS / "README.md").read_text()
    asked = ("--input", "A text.") if spec.needs_inputs else ()
    shown = invoke("spec", "show", file, *asked)
    assert shown.count("--- label ") == len(spec.labels)
    assert not re.search(r"<[A-Z]", shown.replace("<Y", ""))
    if spec.needs_inputs:
        assert isinstance(spec.inputs, TaskSpec)
    assert "fine" in invoke("spec", "check", file)


def test_every_readme_line_is_a_file() -> None:
    lines = re.findall(
        r"^\| (`.*?) \| .* \|$", (SPECS / "README.md").read_text().split("## Writing one")[0], re.MULTILINE
    )
    assert {name for line in lines for name in re.findall(r"`([^`]+)`", line)} == {file.stem for file in FILES}


@pytest.fixture(scope="module")
def long_pocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pocket generator with room for worked examples; it was not trained on texts that long."""
    folder = shutil.copytree(pocket.GENERATOR, tmp_path_factory.mktemp("models") / "long")
    for name, key in (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")):
        fields = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**fields, key: 512}))
    return folder


@pytest.mark.slow
@named
def test_every_spec_generates(file: Path, tmp_path: Path, long_pocket: Path) -> None:
    spec = load_spec(file)
    (tmp_path / "inputs.txt").write_text("A dog runs.\n")
    inputs = ("--inputs", tmp_path / "inputs.txt") if spec.needs_inputs else ()
    short = ("--samples", "2", "--max-new-tokens", "6", "--keep-unfinished", "--keep-newlines")
    invoke("generate", file, "--run", tmp_path / "run", "--model", long_pocket, *inputs, *short)
    found = read_examples(tmp_path / "run" / "shards" / "00000.jsonl", numeric_labels=spec.is_scored)
    assert {example.label for example in found} <= {spec.value(label) for label in spec.labels}


@pytest.mark.parametrize("language", LANGUAGES)
def test_languages_have_their_own_words_and_marks(language: str) -> None:
    """The pocket tokenizer knows no other alphabet: it writes each character in several tokens of a byte."""
    begins, opens, closes = LANGUAGES[language]
    tokenizer = AutoTokenizer.from_pretrained(pocket.GENERATOR)
    for file in (SPECS / f"sts-{language}-x1.json", SPECS / f"sts-{language}-x2.json"):
        spec = load_spec(file)
        assert (spec.language, spec.stop) == (language, closes)
        assert opens in OPENING[closes]
        for label in spec.labels:
            prompt = spec.prompt(label, "X")
            assert prompt.startswith(begins) and prompt.endswith(opens)
            assert prompt.count(closes) == (1 if spec.needs_inputs else 0)
        rule = StopRule(tokenizer, len(tokenizer), closes, stop_at_newline=True)
        text = f"Été «… {begins[:9]}".replace(closes, "")
        tokens = tokenizer(f"{text}{closes} {text}", add_special_tokens=False)["input_ids"]
        mark = tokenizer(closes, add_special_tokens=False)["input_ids"]
        assert len(mark) > 1, "a mark of several tokens"
        endings = [(at, ending) for at in range(1, len(tokens) + 1) if (ending := rule.find(tokens[:at]))]
        at, first = endings[0]
        assert (first.text, first.finish) == (text, "stop")
        assert tokenizer.decode(tokens[:at]).endswith(closes)
