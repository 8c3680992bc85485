from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytrec_eval
from sentence_transformers import SentenceTransformer

from dino_pipeline.encoder_options import StsProtocol
from dino_pipeline.errors import DataError, OptionError
from dino_pipeline.evaluation.suites import retrieval
from dino_pipeline.evaluation.suites.moses import tokenized
from dino_pipeline.evaluation.suites.probe import Probe
from dino_pipeline.evaluation.suites.retrieval import Retrieval
from dino_pipeline.evaluation.suites.sts import (
    SIZES,
    hub_folder,
    read_sts,
    unlike_papers,
    usual_size,
)
from dino_pipeline.evaluation.suites.suite import Embedder, Embeddings, ScoredPairs, unit
from dino_pipeline.examples import Example, write_examples
from dino_pipeline.measures import RANKING
from tests.commands import answer, invoke
from tests.toys import Quiet, by_score

pytestmark = pytest.mark.usefixtures("here")  # scores are written where the command runs

SUBSETS = {
    "STS12": {"MSRpar": 750, "MSRvid": 750, "SMTeuroparl": 459, "surprise.OnWN": 750, "surprise.SMTnews": 399},
    "STS13": {"FNWN": 189, "headlines": 750, "OnWN": 561},
    "STS14": {"deft-forum": 450, "deft-news": 300, "headlines": 750, "images": 750, "OnWN": 750, "tweet-news": 750},
    "STS15": {"answers-forums": 375, "answers-students": 750, "belief": 375, "headlines": 750, "images": 750},
    "STS16": {"answer-answer": 254, "headlines": 249, "plagiarism": 230, "postediting": 244, "question-question": 209},
}
WORDS = ["dog", "cat", "rain", "sun", "tree", "river", "stone", "bread"]


def sentences(count: int, seed: int) -> list[tuple[str, str, str]]:
    draw = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        words = [" ".join(draw.choice(WORDS, 4)) for _ in range(2)]
        made.append((f"A {words[0]}.", f'The "{words[1]}.', f"{draw.integers(0, 26) / 5:g}"))
    return made


def senteval(folder: Path, share: float = 1.0) -> Path:
    """Write files as SentEval has them, with pairs that nobody scored among them."""
    for year, subsets in SUBSETS.items():
        of_year = folder / "STS" / f"{year}-en-test"
        of_year.mkdir(parents=True)
        for seed, (name, count) in enumerate(subsets.items()):
            rows = sentences(max(int(count * share), 3), seed)
            blank = ("Nobody scored\x85this.", "Nor that.", "")
            rows = [rows[0], blank, *rows[1:], blank]
            (of_year / f"STS.input.{name}.txt").write_text("".join(f"{a}\t{b}\n" for a, b, _ in rows))
            (of_year / f"STS.gs.{name}.txt").write_text("".join(f"{gold}\n" for *_, gold in rows))
    benchmark = folder / "STS" / "STSBenchmark"
    benchmark.mkdir()
    rows = sentences(max(int(1379 * share), 3), 7)
    lines = [f"main-news\theadlines\t2016\t{at:04}\t{gold}\t{a}\t{b}\n" for at, (a, b, gold) in enumerate(rows)]
    (benchmark / "sts-test.csv").write_text("".join(lines))
    (folder / "SICK").mkdir()
    for name, count in (("test_annotated", 4927), ("train", 4500), ("trial", 500)):
        rows = sentences(max(int(count * share), 3), count)
        lines = [f"{at}\t{a}\t{b}\t{gold}\tNEUTRAL\n" for at, (a, b, gold) in enumerate(rows)]
        header = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n"
        (folder / "SICK" / f"SICK_{name}.txt").write_text(header + "".join(lines))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SentEval's files in their sizes."""
    return senteval(tmp_path_factory.mktemp("senteval"))


def test_sentevals_layout_is_read_in_the_papers_sizes(whole: Path) -> None:
    sets, notes = read_sts(whole, StsProtocol())
    assert {each.name: each.size for each in sets} == SIZES
    assert notes == []
    assert sets[0].parts[0] == [(a, b, float(gold)) for a, b, gold in sentences(750, 0)], "quotes kept, blanks skipped"
    full, notes = read_sts(whole, StsProtocol(sick="full"))
    assert (full[-1].size, full[-1].protocol["sick"], notes) == (9927, "full", [])
    again, _ = read_sts(whole, StsProtocol(aggregate="mean"))
    assert [each.digest for each in again] == [each.digest for each in sets]
    assert [each.protocol["aggregate"] for each in again] == ["mean"] * 5 + ["all"] * 2


def test_one_table_a_subset_is_the_same_data(whole: Path, tmp_path: Path) -> None:
    sets, _ = read_sts(whole, StsProtocol())
    for each in sets:
        names = sorted(SUBSETS.get(each.name, {"test": 0}))
        for name, part in zip(names, each.parts, strict=True):
            lines = "".join(f"{gold}\t{a}\t{b}\n" for a, b, gold in part)
            (tmp_path / f"{each.name}.{name}.tsv").write_text(lines)
    (tmp_path / "sts13-smt.tsv").write_text("1\tnot\tfree\n")
    (tmp_path / "STS14.all.tsv").write_text("1\tall\tagain\n")
    (tmp_path / "STS-B.dev.tsv").write_text("1\tfor\ttraining\n")
    (tmp_path / "SICK-R.train.tsv").write_text("1\tfor\ttraining\n")
    (tmp_path / "notes.tsv").touch()
    tables, notes = read_sts(tmp_path, StsProtocol())
    assert notes == [f"{tmp_path}: not read: SICK-R.train.tsv, STS-B.dev.tsv, notes.tsv"]
    assert [each.digest for each in tables] == [each.digest for each in sets]
    _, (_, *notes) = read_sts(tmp_path, StsProtocol(sick="full"))
    assert notes == ["SICK-R: 4928 pairs, 9927 are usual; not comparable with published figures"]


@pytest.mark.slow
def test_published_figures_need_the_same_protocol(whole: Path) -> None:
    same, _ = read_sts(whole, StsProtocol(text="tokenized"))
    assert unlike_papers(same) == []
    assert same[0].parts[0][0][0] == sentences(1, 0)[0][0].lower().removesuffix(".") + " ."
    assert same[-1].parts[0][0][0] == sentences(1, 4927)[0][0].removesuffix(".") + " .", "SICK keeps its capitals"
    raw, _ = read_sts(whole, StsProtocol())
    assert "STS12: text raw in place of tokenized in the files or tokenized here" in unlike_papers(raw)
    averaged, _ = read_sts(whole, StsProtocol(aggregate="mean", text="tokenized"))
    assert unlike_papers(averaged)[0] == "STS12: aggregate mean in place of all"
    full, _ = read_sts(whole, StsProtocol(text="tokenized", sick="full"))
    assert unlike_papers(full) == ["SICK-R: sick full in place of test"]
    assert unlike_papers(same[1:]) == ["STS12 is missing"]
    short = [replace(same[0], parts=same[0].parts[1:]), *same[1:]]
    assert unlike_papers(short) == ["STS12: 2358 pairs in place of 3108"]


@pytest.mark.parametrize(
    ("text", "prepared"),
    [
        ("It's 5 o'clock, \"Bob\" & co.", "it 's 5 o 'clock , \" bob \" & co ."),
        ("The vote took place at 3 p.m., not at 5.30 p.m.", "the vote took place at 3 p.m. , not at 5.30 p.m ."),
        ("Mr. Ixx of .NET.", "mr. ixx of .net ."),
        ("And then...", "and then ..."),
        ("He said 'it barely noticed.'", "he said ' it barely noticed . '"),
        ("Dr. A.", "dr. a ."),
    ],
)
def test_texts_are_tokenized_as_by_moses(text: str, prepared: str) -> None:
    """The expected texts are what Moses' tokenizer.perl (-l en -no-escape) and lowercase.perl print."""
    assert tokenized(text) == prepared


def test_text_that_is_tokenized_already_is_known(tmp_path: Path) -> None:
    """Files that were prepared once, and those that were prepared twice, are not taken for raw or for each other."""
    rows = [*sentences(3, 0), ("He left the U.S.", "Bob's dog, isn't it?", "2")]
    once = [(tokenized(a), tokenized(b), gold) for a, b, gold in rows]
    twice = [(tokenized(a), tokenized(b), gold) for a, b, gold in once]
    cased = [(tokenized(a, lower=False), tokenized(b, lower=False), gold) for a, b, gold in rows]
    assert (once[-1][1], twice[-1][1]) == ("bob 's dog , isn 't it ?", "bob ' s dog , isn ' t it ?")
    for name, table in (("STS12.a", once), ("STS13.a", twice), ("STS14.a", rows), ("SICK-R.test", cased)):
        (tmp_path / f"{name}.tsv").write_text("".join(f"{gold}\t{a}\t{b}\n" for a, b, gold in table))
    sets, notes = read_sts(tmp_path, StsProtocol(text="tokenized"))
    found = {each.name: each.protocol["text"] for each in sets}
    assert found == {
        "STS12": "tokenized in the files",
        "STS13": "tokenized twice in the files",
        "STS14": "tokenized here",
        "SICK-R": "tokenized in the files",
    }
    assert sets[2].parts == sets[0].parts, "what is tokenized here equals what SentEval's script leaves"
    assert "STS13: tokenized twice (woman ' s for woman 's); not comparable with published figures" in notes
    differing = unlike_papers(sets)
    assert "STS13: text tokenized twice in the files in place of tokenized in the files or tokenized here" in differing
    assert not [each for each in differing if "text" in each and not each.startswith("STS13")]
    raw, _ = read_sts(tmp_path, StsProtocol())
    assert [each.protocol["text"] for each in raw] == [
        "raw" if text == "tokenized here" else text for text in found.values()
    ]
    assert usual_size("SICK-R", {"sick": "full"}) == 9927


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("STS12.MSRpar.tsv", "1\tone text\n", "line 1: 2 columns, 3 are needed"),
        ("STS12.MSRpar.tsv", "1\ta\tb\nmuch\ta\tb\n", "line 2: 'much' is not a score"),
        ("STS12.MSRpar.tsv", "1\tB\xe4r\tb\n", r"STS12\.MSRpar\.tsv, line 1: byte 3 is not UTF-8"),
        ("STS12.MSRpar.tsv", "1e999\ta\tb\n", "line 1: '1e999' is not a score"),
        ("STS12.MSRpar.tsv", "", "STS12 MSRpar holds no pair with a score"),
        ("STS/STS12-en-test/STS.input.MSRpar.txt", "a\tb\nc\td\n", "STS.gs.MSRpar.txt: 1 scores for the 2 pairs"),
        ("STS/STS12-en-test/STS.input.MSRpar.txt", "a b\n", "line 1: holds one text; give two with a tab"),
    ],
)
def test_sts_files_that_are_wrong_are_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="latin-1")
    if "input" in name:
        path.with_name(path.name.replace("input", "gs")).write_text("3.5\n")
    with pytest.raises(DataError, match=said):
        read_sts(tmp_path, StsProtocol())


def test_subsets_that_cannot_be_told_apart_are_not_averaged(tmp_path: Path) -> None:
    (tmp_path / "STS12.tsv").write_text("1\ta\tb\n2\tc\td\n")
    with pytest.raises(OptionError, match="the subsets of STS12 are one file"):
        read_sts(tmp_path, StsProtocol(aggregate="wmean"))
    (tmp_path / "sts_12.tsv").write_text("1\ta\tb\n")
    with pytest.raises(DataError, match="another file there holds the same part of STS12"):
        read_sts(tmp_path, StsProtocol())
    senteval(tmp_path / "senteval", share=0.01)
    (tmp_path / "senteval" / "SICK" / "SICK_trial.txt").unlink()
    with pytest.raises(DataError, match=r"SICK_trial\.txt: does not exist; sick='full' needs it"):
        read_sts(tmp_path / "senteval", StsProtocol(sick="full"))


def test_the_hubs_archive_is_unpacked_once(tmp_path: Path) -> None:
    senteval(tmp_path / "made", share=0.01)
    with tarfile.open(tmp_path / "senteval.tar", "w") as packed:
        packed.add(tmp_path / "made", "./data/downstream")
        for name in ("../STS/escaped.txt", "STS/../../escaped.txt"):
            member = tarfile.TarInfo(name)
            member.size = 1
            packed.addfile(member, io.BytesIO(b"x"))
    asked = []

    def download(*names: str, repo_type: str) -> str:
        asked.append((*names, repo_type))
        return str(tmp_path / "senteval.tar")

    folder = hub_folder(download, tmp_path / "cache" / "deep")
    assert asked == [("princeton-nlp/datasets-for-simcse", "senteval.tar", "dataset")]
    assert [each.name for each in read_sts(folder, StsProtocol())[0]] == list(SIZES)
    (folder / "STS" / "mark").touch()
    assert (hub_folder(download, tmp_path / "cache" / "deep") / "STS" / "mark").exists(), "not unpacked again"
    assert {path.parent for path in tmp_path.rglob("escaped.txt")} <= {folder / "STS"}

    def refuse(*names: str, repo_type: str) -> str:
        raise OSError("no network")

    with pytest.raises(
        OptionError, match=r"cannot be downloaded from the Hub \(no network\); give the files with data_dir=FOLDER"
    ):
        hub_folder(refuse, tmp_path)
    tarfile.open(tmp_path / "other.tar", "w").close()
    with pytest.raises(OptionError, match="the archive holds no STS files"):
        hub_folder(lambda *_, **__: str(tmp_path / "other.tar"), tmp_path / "cache")


def test_the_sts_suite_is_one_table_with_its_marks(tmp_path: Path, toy_encoder: Path) -> None:
    data = senteval(tmp_path / "small", share=0.02)
    call = ("evaluate", toy_encoder, "pocket", "--suite", "sts", "--data-dir", data, "--published")
    done = answer(*call, "--output", tmp_path / "scores.json")
    assert done.exit_code == 0, done.stderr
    assert "STS12: 61 pairs, 3108 are usual" in done.stderr
    assert done.stdout.splitlines()[0].split()[3:] == [
        *(f"{name}†" for name in SIZES), "mean†", "95", "%", "of", "mean",
    ]  # fmt: skip
    assert "aggregate: all, text: raw, sick: test" in done.stdout
    assert "Published figures are of another protocol and not shown: STS12: text raw" in done.stdout
    assert "SBERT" not in done.stdout
    found = json.loads((tmp_path / "scores.json").read_text())
    of_pocket = {each["data"]: each["measures"]["spearman"] for each in found["scores"] if each["model"] == "pocket"}
    assert list(of_pocket) == [*SIZES, "mean"]
    assert of_pocket["mean"]["value"] == pytest.approx(np.mean([of_pocket[name]["value"] for name in SIZES]))
    assert of_pocket["mean"]["low"] < of_pocket["mean"]["value"] < of_pocket["mean"]["high"]
    assert len(found["differences"]) == 8


@pytest.mark.slow
def test_published_figures_stand_under_figures_of_their_protocol(whole: Path) -> None:
    call = ("evaluate", "pocket", "--suite", "sts", "--data-dir", whole, "--text", "tokenized", "--published")
    printed = invoke(*call)
    line = next(line for line in printed.splitlines() if line.startswith("DINO x2"))
    assert line.split()[-8:] == ["70.27", "81.26", "71.25", "80.49", "77.18", "77.82", "68.09", "75.20"]
    assert "†" not in printed
    assert [line[:15] for line in printed.splitlines() if "‡" in line] == [
        "DINO x1x2, RoBE", "DINO x2, RoBERT", "Mirror-RoBERTa ", "‡ a cased encod",
    ]  # fmt: skip


def examples_of(classes: Mapping[str, Sequence[str]], count: int) -> list[Example]:
    """Texts whose words give their class away."""
    draw = np.random.default_rng(0)
    return [
        Example(" ".join([*draw.choice(words, 3), str(draw.choice(WORDS))]), None, name)
        for _ in range(count)
        for name, words in classes.items()
    ]


KINDS = {"animal": ["dog", "cat", "bird"], "weather": ["rain", "sun", "snow"], "stone": ["rock", "pebble", "sand"]}


def embedder(path: Path, reporter: Quiet | None = None) -> Embedder:
    return Embedder("toy", SentenceTransformer(str(path)), 32, reporter or Quiet())


@pytest.mark.slow
def test_a_probe_tells_classes_apart_and_says_how_well(tmp_path: Path, toy_encoder: Path) -> None:
    write_examples(tmp_path / "topics.jsonl", examples_of(KINDS, 40))
    probe = Probe.read("topics", tmp_path / "topics.jsonl")
    assert (probe.size, probe.classes, probe.protocol) == (120, ["animal", "stone", "weather"], {"split": "10 folds"})
    found = probe.measure(embedder(toy_encoder))
    assert found["accuracy"].value is not None and found["accuracy"].value > 80
    assert found["accuracy"].interval
    same = probe.measure(embedder(toy_encoder))
    assert [each.value for each in found.values()] == [each.value for each in same.values()]
    name, guessed = probe.baseline()
    assert name == "most frequent class"
    assert guessed["accuracy"].value == pytest.approx(100 / 3)
    labels = np.random.default_rng(1).permutation([str(each.label) for each in probe.train])
    mixed = [replace(each, label=str(label)) for each, label in zip(probe.train, labels, strict=True)]
    nothing = replace(probe, train=mixed)
    of_nothing = nothing.measure(embedder(toy_encoder))["accuracy"].value
    assert of_nothing is not None and of_nothing < 50, "what is not there is not found: nothing leaks between folds"


def test_a_probe_of_pairs_and_of_two_files(tmp_path: Path, toy_encoder: Path) -> None:
    texts = examples_of(KINDS, 40)
    pairs = [Example(a.text_a, b.text_a, str(int(a.label == b.label))) for a, b in pairwise(texts)]
    pairs += [Example(each.text_a, each.text_a, "1") for each in texts]
    for name, part in (("train", pairs[:180]), ("test", pairs[180:])):
        write_examples(tmp_path / f"{name}.jsonl", part)
    probe = Probe.read("same", tmp_path)
    assert (probe.size, probe.protocol) == (len(pairs) - 180, {"split": "train and test"})
    embedded = embedder(toy_encoder)
    features = probe._features(embedded, pairs[:2])
    u, v = embedded([pairs[0].text_a, pairs[0].text_b or ""])
    assert features.shape == (2, 2 * len(u))
    np.testing.assert_allclose(features[0], np.concatenate([abs(u - v), u * v]))
    found = probe.measure(embedded)["accuracy"].value
    assert found is not None and found > 90
    write_examples(tmp_path / "test.jsonl", [Example("a", "b", "maybe"), Example("a", "b", "1")])
    with pytest.raises(DataError, match=r"class maybe is not in train\.jsonl"):
        Probe.read("same", tmp_path)


def test_classes_that_are_numbers_are_the_same_however_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("".join(f'{{"text": "t {at}", "class": {at % 2}}}\n' for at in range(8)))
    (tmp_path / "test.jsonl").write_text('{"text": "t", "class": 1.0}\n{"text": "u", "class": 0.0}\n')
    assert Probe.read("numbers", tmp_path).classes == ["0", "1"]
    (tmp_path / "test.jsonl").write_text('{"text_a": "t", "text_b": "u", "label": "1"}\n')
    with pytest.raises(DataError, match="holds texts, the other pairs"):
        Probe.read("numbers", tmp_path)
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(DataError, match=r"test\.jsonl: does not exist; the folder of a probe holds"):
        Probe.read("numbers", tmp_path)
    write_examples(tmp_path / "train.jsonl", [Example(f"t {at}", None, ("v1", "v1.0")[at % 2]) for at in range(8)])
    assert Probe.read("names", tmp_path / "train.jsonl").classes == ["v1", "v1.0"]


@pytest.mark.parametrize(
    ("kind", "rows", "said"),
    [
        (Probe, [Example("a", None, "x"), Example("b", None, "x")], "all texts have the same class"),
        (Probe, [Example("a", None, "x"), Example("b")], "line 2: has no label, but .*line 1 has one"),
        (
            Probe,
            [Example("a", None, "x"), Example("b", "c", "y")],
            "line 1: has no second text, but .*line 2 has one",
        ),
        (ScoredPairs, [Example("a", None, 1.0)], "example 1 is not a scored pair"),
        (ScoredPairs, [Example("a", "b", 1.0), Example("a", "b", "x")], 'line 2: "label" must be a number'),
        (ScoredPairs, [Example("a", "b", 1.0), Example("a", "c", 1.0)], "all pairs have the same label"),
        (
            ScoredPairs,
            [Example("a", "b", 1.0), Example("a", "c")],
            "line 2: has no label, but .*line 1 has one",
        ),
    ],
)
def test_texts_without_what_a_suite_needs_are_refused(tmp_path: Path, kind: Any, rows: Any, said: str) -> None:
    write_examples(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=said):
        kind.read("rows", tmp_path / "rows.jsonl")


def beir(folder: Path, documents: dict[str, str], queries: dict[str, str], judged: list[tuple[str, str, int]]) -> Path:
    (folder / "qrels").mkdir(parents=True)
    rows: list[dict[str, Any]] = [{"_id": name, "title": "", "text": text} for name, text in documents.items()]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [{"_id": name, "text": text} for name, text in queries.items()]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    lines = [f"{query}\t{document}\t{grade}\n" for query, document, grade in judged]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return folder


class Ticks(Embedder):
    """Embeds into few directions, so that many documents are equally near."""

    def embed(self, texts: Sequence[str], *, role: str = "") -> Embeddings:
        assert role in {"query", "document"}
        axes = [[sum(map(ord, word)) % 3 - 1.0 for word in (*text.split(), "b", "b", "b")[:3]] for text in texts]
        return np.array(axes, dtype=np.float32)


def test_retrieval_is_trec_evals_of_an_exact_search_block_by_block(
    tmp_path: Path, toy_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many documents are equally near; ids that queries and documents share are left out."""
    draw = np.random.default_rng(2)
    documents = {f"{'dx'[at % 2]}{at}": " ".join(draw.choice(WORDS, draw.integers(1, 4))) for at in range(400)}
    queries = {f"q{at}": " ".join(draw.choice(WORDS, 2)) for at in range(30)}
    queries |= {name: documents[name] for name in list(documents)[:10]}
    judged = [
        (query, str(document), int(draw.integers(0, 4)))
        for query in queries
        for document in draw.choice(list(documents), 40, replace=False)
    ]
    queries["nobody judged"] = "dog"
    data = Retrieval.read("toy", beir(tmp_path / "toy", documents, queries, judged))
    assert (data.size, len(data.ids)) == (40, 400)
    reporter = Quiet()
    ticks = Ticks("toy", SentenceTransformer(str(toy_encoder)), 32, reporter)
    whole, found = data.search(ticks), data.measure(ticks)
    assert reporter.seen[-1] == ("toy: documents of toy", 400, 400)
    monkeypatch.setattr(retrieval, "DOCUMENTS", 64)
    assert data.search(ticks) == whole, "the size of blocks changes nothing"
    asked = unit(ticks.embed(list(data.queries.values()), role="query"))
    cosines = asked @ unit(ticks.embed(list(documents.values()), role="document")).T
    run = {
        query: {name: float(value) for name, value in zip(documents, row, strict=True) if name != query}
        for query, row in zip(data.queries, cosines, strict=True)
    }
    assert whole == {query: by_score(scores)[:100] for query, scores in run.items()}
    trec = pytrec_eval.RelevanceEvaluator(dict(data.judged), {"ndcg_cut.10", "recall.20,100"}).evaluate(run)
    assert list(found) == list(RANKING)
    for name, key in (("ndcg@10", "ndcg_cut_10"), ("recall@20", "recall_20"), ("recall@100", "recall_100")):
        expected = 100 * np.mean([each[key] for each in trec.values()])
        assert found[name].value == pytest.approx(expected, abs=1e-9), name


def test_retrieval_is_a_suite_of_the_command(tmp_path: Path) -> None:
    texts = {"d1": "A man plays a guitar.", "d2": "The rain falls.", "d3": "A woman eats bread."}
    folder = beir(tmp_path / "tiny", texts, {"q": "A man plays a guitar."}, [("q", "d1", 2), ("q", "d9", 0)])
    done = answer("evaluate", "pocket", "--data", folder)
    assert done.exit_code == 0, done.stderr
    assert "tiny: 1 judged documents are not in corpus.jsonl" in done.stderr
    header, _, row, _ = done.stdout.splitlines()
    assert header.split() == ["data", "model", "queries", "ndcg@10", "95", "%", "interval", *RANKING[1:]]
    assert row.split() == ["tiny", "pocket", "1", "100.00", "100.00", "..", "100.00", "100.00", "100.00", "100.00"]


def test_all_documents_as_near_as_the_last_are_returned() -> None:
    documents = np.array([[1, 0], [0, 1], *[[0.6, 0.8]] * 90, [0.8, 0.6]], dtype=np.float32)
    (hits,) = retrieval.nearest(np.array([[1, 0]], dtype=np.float32), documents, 3)
    assert {row for _, row in hits} >= {0, 92, *range(2, 92)}
    assert [similarity for similarity, _ in hits][:3] == pytest.approx([1, 0.8, 0.6])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("corpus.jsonl", '{"_id": "d"}\n', 'corpus.jsonl, line 1: must be an object with "_id" and "text"'),
        ("corpus.jsonl", '{"_id": "d", "text": "x"}\n' * 2, "two documents have the same _id"),
        ("corpus.jsonl", '{"_id": null, "text": "x"}\n', 'must be an object with "_id" and "text"'),
        ("corpus.jsonl", '{"_id": "d", "text": "\\ud800"}\n', "line 1: its text holds half a character"),
        ("corpus.jsonl", "", "none of its documents is in corpus"),
        ("corpus.jsonl", '{"_id": "other", "text": "x"}\n', "none of its documents is in corpus"),
        ("queries.jsonl", "{", "queries.jsonl, line 1: not JSON"),
        ("queries.jsonl", '{"_id": "q", "text": "x"}\n' * 2, "two queries have the same _id"),
        ("queries.jsonl", '{"_id": "other", "text": "x"}\n', "query 'q' is not in queries.jsonl"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq d one\n", "line 2: is .*; give query id, document id"),
        ("qrels/test.tsv", "q\td\t0.5\nq\td\t1\n", "line 1: is .*; give query id, document id and a whole number"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", "holds no judgements"),
    ],
)
def test_retrieval_files_that_are_wrong_are_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    folder = beir(tmp_path / "x", {"d": "a dog"}, {"q": "dog"}, [("q", "d", 1)])
    (folder / name).write_text(text)
    with pytest.raises(DataError, match=said):
        Retrieval.read("x", folder)
    (folder / name).unlink()
    with pytest.raises(DataError, match="does not exist; a folder in BEIR's layout holds corpus"):
        Retrieval.read("x", folder)


def test_pairs_without_a_score_are_counted_and_quotes_of_a_table_are_not_part_of_texts(tmp_path: Path) -> None:
    rows = [(number % 6, f"A text {number}.", f'Another "{number}".') for number in range(30)]
    with open(tmp_path / "STSBenchmark.tsv", "w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerows([*rows, ("", "not", "scored")])
    (found,), _ = read_sts(tmp_path, StsProtocol())
    assert found.parts[0][:2] == [(first, second, float(score)) for score, first, second in rows[:2]]
    assert found.rows_read[0].told == "STS-B: 31 rows read, 1 left out: without a score (in STS-B)"
