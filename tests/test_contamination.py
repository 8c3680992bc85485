from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from dino_pipeline import pocket
from dino_pipeline.errors import DataError, OptionError
from dino_pipeline.examples import FIELDS, Example
from dino_pipeline.filter_options import FilterOptions
from dino_pipeline.filtering import contamination as contamination_module
from dino_pipeline.filtering.contamination import ContaminationFilter, exclusion_files, texts_of
from dino_pipeline.filtering.dataset_rules import FilterRuntime
from dino_pipeline.filtering.filter import open_runtime
from dino_pipeline.progress import SilentReporter
from dino_pipeline.rows import ListRows, Table
from dino_pipeline.run import Run
from tests.pairs import Words, dropped, filtered

LEAKED = "The quick brown fox jumps over the lazy dog near the river bank today."


@pytest.fixture
def contamination(tmp_path: Path) -> ContaminationFilter:
    (tmp_path / "gold.tsv").write_text(f"4.5\tOne short gold sentence.\t{LEAKED}\n")
    return ContaminationFilter([str(tmp_path / "gold.tsv")], 0.8)


@pytest.mark.parametrize(
    ("text", "how"),
    [
        ("the QUICK brown fox; jumps over the lazy dog, near the river bank today", "the same as"),
        ("The quick brown fox jumped over the lazy dog near the river bank today!", "similar (0."),
        (f"Yesterday somebody told me at length and in private that {LEAKED} And so on and on.", "13 words of"),
    ],
)
def test_evaluation_data_is_found_by_each_way(contamination: ContaminationFilter, text: str, how: str) -> None:
    for example in (Example(text, "Fine.", 1.0), Example("Fine.", text, 0.0), Example(text, None, "x")):
        said = contamination(example)
        assert said is not None
        assert said.startswith(f"in evaluation data: {how}")
        assert "gold.tsv, line 1: the quick brown fox" in said


def test_short_and_unparted_texts(tmp_path: Path) -> None:
    gold = "昨天下午我们在城里的一家小书店买了三本关于历史和地理的旧书"
    (tmp_path / "gold.txt").write_text(f"A man sat.\n我喜欢狗\n{gold}\nyes\n")
    contamination = ContaminationFilter([str(tmp_path / "gold.txt")], 0.8)
    for text in (
        "a man sat",
        "我喜欢狗。",
        f"据我所知，{gold}，然后我们就回家吃饭休息看电视聊天睡觉一直到第二天早上。",
    ):
        assert (contamination(Example(text, "Fine.", 1.0)) or "").startswith("in evaluation data: ")
    assert contamination(Example("Yes!", "Fine.", 1.0)) is None


@pytest.mark.slow
def test_other_texts_pass(contamination: ContaminationFilter) -> None:
    examples = [Example(text, text[::-1], 1.0) for text in (Words().sentence() for _ in range(100))]
    contamination.prepare(examples)
    assert not any(map(contamination, examples))
    assert contamination(Example("4.5", "The quick brown fox sleeps.", 1.0)) is None


NESTED = '{"s1": "one", "more": ["two", {"x": "three"}], "score": 1}\n\n{"s1": "four"}\n'


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.jsonl", NESTED, [(1, "one"), (1, "two"), (1, "three"), (3, "four")]),
        ("b.txt", "one\ttwo\n", [(1, "one"), (1, "two")]),
        ("b.csv", '"one, and more",two\n', [(1, "one, and more"), (1, "two")]),
        ("c.json", '[\n {"s1": "one"}\n]\n', [(2, "one")]),
        ("empty.txt", "\n", "empty.txt: holds no text to keep out"),
        ("c.jsonl", '{"s1": "one"}\nnonsense\n', "c.jsonl, line 2: not JSON"),
    ],
)
def test_files_of_every_kind(tmp_path: Path, name: str, content: str, texts: list[tuple[int, str]] | str) -> None:
    (tmp_path / name).write_text(content)
    if isinstance(texts, list):
        assert list(texts_of(tmp_path / name)) == texts
    else:
        with pytest.raises(DataError, match=texts):
            list(texts_of(tmp_path / name))


def test_evaluation_sets_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(name: str, split: str) -> list[Table]:
        asked.append((name, split))
        if "sts12" in name:
            raise ConnectionError("no route")
        return [ListRows([{"sentence1": "Gold one.", "sentence2": LEAKED}], FIELDS)]

    monkeypatch.setattr(contamination_module, "open_tables", load)
    gold, file = exclusion_files(["pocket", "stsb"], tmp_path)
    assert gold == str(pocket.GOLD_TEST)
    assert [text for _, text in texts_of(Path(file))] == ["Gold one.", LEAKED]
    assert exclusion_files(["stsb"], tmp_path) == [file]
    assert asked == [("mteb/stsbenchmark-sts", "test")]
    with pytest.raises(OptionError, match=r"'sts12': mteb/sts12-sts cannot be read or fetched .*ConnectionError"):
        exclusion_files(["sts12"], tmp_path)
    run = Run(tmp_path / "run")
    dry = FilterOptions(exclude=("stsb",), dry_run=True)
    with open_runtime(run, dry, SilentReporter(), has_spec=False) as runtime:
        assert Path(runtime.excluded[0]).read_text() == Path(file).read_text()
    assert not [*run.path.iterdir()], "a dry run leaves nothing"


COUNT = 50


def planted(words: Words, gold: list[str]) -> dict[str, list[Example]]:
    """Return faulty pairs under the reason that they should go by."""
    rng = random.Random(5)

    def one_word_changed(text: str) -> str:
        parts = text.rstrip(".").split()
        parts[rng.randrange(1, len(parts))] = rng.choice(words.words)
        return " ".join(parts) + "."

    def leaked(number: int) -> Example:
        text = gold[number].upper().replace(" ", " - ", 1).rstrip(".") + "!?"
        return Example(text, words.sentence(), 0.5) if number % 2 else Example(words.sentence(), text, 1.0)

    def copies(change: Any) -> list[Example]:
        return [Example(text, change(text), 1.0) for text in (words.sentence() for _ in range(COUNT))]

    torn = [Example(words.sentence(), words.sentence(), 1.0, input=1, sample=0) for _ in range(COUNT // 2)]
    again = f" {' '.join([words.words[7], words.words[9]] * 4)}."
    return {
        "near-copy": copies(one_word_changed),
        "identical texts": copies(lambda text: text.upper().replace(" ", ", ", 2)),
        "conflicting labels": torn + [Example(pair.text_b or "", pair.text_a, 0.0) for pair in torn],
        "in evaluation data": [leaked(number) for number in range(COUNT)],
        "repetition": copies(lambda text: words.sentence() + again),
        "personal data": copies(lambda text: f"Write to {words.sentence().split()[0]}@{rng.choice(words.words)}.org."),
        "copied instruction": copies(lambda text: f"Sentence 2: {words.sentence()}"),
    }


@pytest.mark.slow
def test_every_planted_fault_goes_by_its_reason_and_hardly_anything_else(tmp_path: Path) -> None:
    words = Words(8)
    gold = [words.sentence() for _ in range(200)]
    (tmp_path / "gold.jsonl").write_text("".join(json.dumps({"sentence1": text}) + "\n" for text in gold))
    clean, faulty = words.pairs(1667)[:10_000], planted(words, gold)
    examples = clean + [each for some in faulty.values() for each in some]
    random.Random(1).shuffle(examples)
    options = FilterOptions(pii="drop", exclude=("gold.jsonl",), max_per_text=0, balance=False)
    run = filtered(tmp_path, examples, options, FilterRuntime(workers=2, excluded=(str(tmp_path / "gold.jsonl"),)))
    gone = {(row["text_a"], row["text_b"]): row["reason"] for row in dropped(run)}
    for reason, some in faulty.items():
        assert [gone.get((each.text_a, each.text_b)) for each in some] == [reason] * COUNT
    wrongly = [gone[pair] for each in clean if (pair := (each.text_a, each.text_b)) in gone]
    assert len(wrongly) <= 0.001 * len(clean), wrongly
