from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer

import dino_pipeline as dino
from dino_pipeline.errors import DataError, ModelError, OptionError
from dino_pipeline.evaluation.evaluate import Candidate, baselines, score_candidates, scores_of
from dino_pipeline.evaluation.scores import ScoresFile
from dino_pipeline.evaluation.suites.suite import WORD_OVERLAP, Embedder, ScoredPairs
from dino_pipeline.examples import Example, write_examples
from dino_pipeline.measures import RESAMPLES
from tests.commands import answer, invoke, refused
from tests.records import finetune_record, write_record
from tests.toys import Quiet

pytestmark = pytest.mark.usefixtures("here")  # scores are written where the command runs

PAIRS = [
    Example("a dog runs", "a dog runs", 1.0),
    Example("a dog runs", "a dog sits", 0.6),
    Example("a dog runs", "two cats sit", 0.2),
    Example("rain falls", "a dog sits", 0.0),
]


def stored(path: Path, rows: Sequence[Example]) -> Path:
    write_examples(path, rows)
    return path


@pytest.fixture
def gold(here: Path) -> Path:
    return stored(here / "gold.jsonl", PAIRS)


def trained(folder: Path, encoder: Path) -> Path:
    """Make a run whose encoder is trained."""
    shutil.copytree(encoder, folder / "model")
    write_record(folder, finetune_record(str(encoder)))
    return folder


@pytest.fixture
def trained_run(here: Path, toy_encoder: Path) -> Path:
    """A run whose encoder is trained, with pairs to evaluate it on."""
    stored(trained(here / "run", toy_encoder) / "dev.jsonl", PAIRS)
    return here / "run"


def pairs_of(rows: Sequence[Example]) -> ScoredPairs:
    return ScoredPairs("gold", [[(row.text_a, row.text_b or "", float(row.label or 0)) for row in rows]])


def test_models_are_scored_side_by_side_with_word_overlap(gold: Path, toy_encoder: Path) -> None:
    pairs = ScoredPairs.read("gold", gold)
    reporter = Quiet()
    candidates = [Candidate("toy", str(toy_encoder)), Candidate("same", str(toy_encoder), None, "people")]
    found = score_candidates(candidates, [pairs], reporter)
    assert [(each.data, each.model, each.size) for each in found.scores] == [
        ("gold", name, 4) for name in (WORD_OVERLAP, "toy", "same")
    ]
    expected = 100 * spearmanr([1, 0.5, 0, 0], [1, 0.6, 0.2, 0])[0]
    assert found.scores[0].measures["spearman"].value == pytest.approx(expected, abs=1e-9)
    seen = [(f"{name}: texts", done, 4) for name in ("toy", "same") for done in (0, 4)]
    assert reporter.seen == seen, "four distinct texts, each embedded once"
    written = json.loads(json.dumps(found.model_dump(mode="json"), allow_nan=False))
    assert written["models"][1]["chosen_on_human_labels"] == "people"
    assert {"name", "path", "revision", "commit", "fingerprint", "dimension"} <= set(written["models"][0])
    assert written["scores"][1]["protocol"] == {"similarity": "cosine"}
    assert written["scores"][1]["digest"] == pairs.digest
    assert written["versions"]["sentence-transformers"]
    (same,) = written["differences"]
    assert [same[name] for name in ("model", "minus", "difference", "low", "high")] == ["same", "toy", 0, 0, 0]


@pytest.mark.parametrize(("aggregate", "weights"), [("mean", (1, 1)), ("wmean", (30, 10))])
def test_parts_are_averaged_or_taken_as_one(aggregate: str, weights: tuple[int, int]) -> None:
    draw = np.random.default_rng(0)
    gold, predicted = draw.normal(size=40), draw.normal(size=40)
    predicted[30:] += 5
    rows = [(str(at), "", float(gold[at])) for at in range(40)]
    each = [100 * spearmanr(predicted[part], gold[part])[0] for part in (slice(30), slice(30, 40))]

    def correlated(how: str) -> float | None:
        pairs = ScoredPairs("x", [rows[:30], rows[30:]], "sts", aggregate=how)  # type: ignore[arg-type]
        return pairs.correlate(lambda part: np.array([predicted[int(at)] for at, _, _ in part]))["spearman"].value

    assert correlated("all") == pytest.approx(100 * spearmanr(predicted, gold)[0], abs=1e-9)
    assert correlated(aggregate) == pytest.approx(np.average(each, weights=weights), abs=1e-9)


def test_pairs_are_read_under_other_datasets_names_too(tmp_path: Path) -> None:
    rows: list[Mapping[str, object]] = [
        {"sentence1": "a", "sentence2": "b", "score": 3, "id": 7},
        {"sentence1": "c", "sentence2": "d", "score": 4.5, "id": 8},
    ]
    (tmp_path / "sts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert ScoredPairs.read("sts", tmp_path / "sts.jsonl").parts == [[("a", "b", 3.0), ("c", "d", 4.5)]]


def test_a_model_that_is_not_there_or_gives_no_numbers_is_named(tmp_path: Path, toy_encoder: Path) -> None:
    with pytest.raises(ModelError, match="nowhere: there is no such folder"):
        score_candidates([Candidate("x", str(tmp_path / "nowhere"))], [pairs_of(PAIRS)], Quiet())
    model = SentenceTransformer(str(toy_encoder))
    next(model.parameters()).data.fill_(float("nan"))
    with pytest.raises(ModelError, match="broken: some of its embeddings are not numbers"):
        Embedder("broken", model, 8, Quiet())(["a"])


def test_scores_do_not_depend_on_what_else_is_evaluated(toy_encoder: Path) -> None:
    model = SentenceTransformer(str(toy_encoder))
    one, other = pairs_of(PAIRS), ScoredPairs("other", [[("x y z", "rain", 0.0), ("rain falls", "rain", 1.0)]])
    alone = scores_of("m", model, [one], Quiet())[0].measures["pearson"]
    beside = scores_of("m", model, [other, one], Quiet())[1].measures["pearson"]
    assert alone.value == pytest.approx(beside.value, abs=1e-4)
    assert alone.resampled.shape == (RESAMPLES,)
    assert [each.model for each in baselines([one, other])] == [WORD_OVERLAP, WORD_OVERLAP]


def test_evaluate_tells_suites_by_what_data_holds(tmp_path: Path, gold: Path, toy_encoder: Path) -> None:
    kinds = [Example(f"{kind} {at}", None, kind) for kind in ("good", "bad") for at in range(6)]
    classes = stored(tmp_path / "classes.jsonl", kinds)
    call = ("evaluate", toy_encoder, "--data", gold, "--data", classes)
    assert "most frequent class" in invoke(*call, "--output", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert [(each["suite"], each["data"], each["size"]) for each in scores] == [
        *[("pairs", "gold.jsonl", 4)] * 2,
        *[("probe", "classes.jsonl", 12)] * 2,
    ]
    assert scores[2]["measures"]["accuracy"]["value"] == 50
    assert scores[3]["protocol"] == {"split": "6 folds"}
    assert "class 1 has only one text" in refused("evaluate", toy_encoder, "--suite", "probe", "--data", gold)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--suite", "sts,nli"], "--suite nli: must be one of sts, probe"),
        (["--suite", "probe"], "--suite probe: has no data; give --data probe=PATH"),
        (
            ["--suite", "pocket", "--data", "gold.jsonl"],
            "is for suite pairs, which is not evaluated; add --suite pairs",
        ),
        (["--data", "retrieval=nowhere"], "--data retrieval=nowhere: does not exist"),
        (["--data", "gold.jsonl", "--aggregate", "mean"], "--aggregate mean: has an effect with suite sts only"),
        (["--suite", "sts", "--data-dir", "nowhere"], "--data-dir nowhere: is not a folder"),
        (["--suite", "sts", "--data-dir", "."], "holds none of the STS sets"),
        (["--data", "gold.jsonl", "--data", "pairs=gold.jsonl"], "occurs twice"),
        ([], "there is no data to evaluate on; give --data FILE"),
    ],
)
def test_what_cannot_be_evaluated_is_said(gold: Path, toy_encoder: Path, arguments: list[str], said: str) -> None:
    found = answer("evaluate", toy_encoder, *arguments)
    assert (found.exit_code, found.stdout) == (2, "")
    assert said in found.stderr


def test_two_runs_of_one_name_are_told_apart(tmp_path: Path, gold: Path, toy_encoder: Path) -> None:
    for folder in ("a", "b"):
        trained(tmp_path / folder / "run", toy_encoder)
    invoke("evaluate", "a/run", "b/run", "--data", "gold.jsonl", "--output", "scores.json")
    names = [each["name"] for each in json.loads((tmp_path / "scores.json").read_text())["models"]]
    assert names == [f"{toy_encoder} {what}" for what in ("before", "finetuned on a/run", "finetuned on b/run")]


def test_scores_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "gold.csv").write_text("sentence1,sentence2,score\na,b,1\nc,d,inf\n")
    with pytest.raises(DataError, match=r'line 3: "score" must be a number \(it is "inf"\)'):
        ScoredPairs.read("gold", tmp_path / "gold.csv")


def test_scores_are_written_here_unless_something_else_is_there(gold: Path, toy_encoder: Path) -> None:
    call, scores = ("evaluate", toy_encoder, "--data", "gold.jsonl"), gold.with_name("scores.json")
    for _ in range(2):
        assert invoke(*call).endswith("written: scores.json\n")
    scores.write_text("mine")
    assert "scores.json: exists and holds no scores" in refused(*call)
    assert scores.read_text() == "mine"
    assert "nowhere is not a folder that can be written to" in refused(*call, "--output", "nowhere/scores.json")


@pytest.mark.slow
def test_scores_that_are_up_to_date_are_shown_without_loading_libraries(trained_run: Path) -> None:
    invoke("evaluate", "run")
    code = "import sys; from dino_pipeline.cli import main; main(['evaluate', 'run'], standalone_mode=False)"
    heavy = "sys.modules.keys() & {'torch', 'transformers', 'sentence_transformers'}"
    done = subprocess.run([sys.executable, "-c", f"{code}; assert not ({heavy})"], capture_output=True, text=True)
    assert (done.returncode, "run: scores are up to date" in done.stdout) == (0, True), done.stderr


def test_damaged_or_older_scores_of_a_run_are_made_again(trained_run: Path) -> None:
    said = []
    for damage in (None, "{", '{"scores": []}', None):
        if damage:
            (trained_run / "scores.json").write_text(damage)
        said.append("up to date" in invoke("evaluate", "run"))
    assert said == [False, False, False, True]
    (trained_run / "run.json").write_text("[]")
    damaged = "run.json: is not a record that this version reads (must be a JSON object)"
    assert damaged in refused("evaluate", "run")


@pytest.mark.parametrize("content", [b"\x80\x02broken", b""])
def test_broken_weights_are_named(
    tmp_path: Path, toy_encoder: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(toy_encoder, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").unlink()
    (tmp_path / "broken" / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ModelError, match=r"pytorch_model\.bin: holds pickled weights only"):
        score_candidates([Candidate("x", str(tmp_path / "broken"))], [pairs_of(PAIRS)], Quiet())
    monkeypatch.setenv("DINO_ALLOW_PICKLE", "1")
    with pytest.raises(ModelError, match="cannot be loaded as an encoder"):
        score_candidates([Candidate("x", str(tmp_path / "broken"))], [pairs_of(PAIRS)], Quiet())


def test_python_takes_encoders_and_examples_in_memory(toy_encoder: Path) -> None:
    model = SentenceTransformer(str(toy_encoder))
    tuples = [(row.text_a, row.text_b, row.label) for row in PAIRS]
    scores = dino.evaluate(model, data=tuples, progress=False)
    expected = [("pairs", "data", WORD_OVERLAP), ("pairs", "data", "encoder")]
    assert [(row.suite, row.data, row.model) for row in scores] == expected
    assert scores["pearson"] == scores.rows[1].measures["pearson"].value == scores.value("pearson", data="data")
    assert scores.value("spearman", model=WORD_OVERLAP) == scores.rows[0].measures["spearman"].value
    assert scores.path is None and not Path("scores.json").exists()
    assert str(scores).splitlines()[0].split() == ["data", "model", "pairs", *["Spearman", "x", "100"],
                                                   *["95", "%", "interval"], *["Pearson", "x", "100"]]  # fmt: skip
    assert list(scores.to_pandas().columns) == ["suite", "data", "model", "size", "measure", "value", "low", "high"]
    dataset = Dataset.from_list([{"sentence1": a, "sentence2": b, "score": label} for a, b, label in tuples])
    by_name = dino.evaluate(model, str(toy_encoder), data={"mine": dataset, "yours": PAIRS}, progress=False)
    assert by_name.value("pearson", data="mine", model="encoder") == scores["pearson"]
    assert [each.difference for each in by_name.differences] == [0, 0]
    with pytest.raises(DataError, match='example 0: "label" must be a finite number or a name'):
        dino.evaluate(model, data=[("x y", "u v", float("nan")), *tuples], progress=False)
    with pytest.raises(OptionError, match="4 scores fit measure 'pearson'; name data and model: data='mine'"):
        by_name["pearson"]
    classes = [{"text_a": f"{kind} {at}", "label": kind} for kind in ("good", "bad") for at in range(6)]
    assert dino.evaluate(model, data=[PAIRS, classes], progress=False).rows[-1].suite == "probe"


def test_python_and_the_command_line_keep_a_runs_scores_in_one_place(trained_run: Path) -> None:
    shown = invoke("evaluate", "run")
    scores = dino.evaluate(dino.Run(Path("run")), progress=False)
    assert (scores.path, scores.was_kept) == (Path("run/scores.json"), True)
    assert f"{scores}\n" == shown
    assert scores.file == ScoresFile.read(trained_run / "scores.json")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"suite": "nli"}, "suite='nli': must be one of sts, probe, retrieval, pairs, pocket"),
        ({"text": "lower", "suite": "sts"}, "text='lower': must be one of raw, tokenized"),
        ({"sick": "full"}, "sick='full': has an effect with suite sts only; leave it out, or add suite='sts'"),
        ({"data": "nowhere.jsonl"}, "data='nowhere.jsonl': does not exist"),
        ({"suite": 5}, "suite=5: must be one of sts, probe"),
        ({"data": []}, "there is no data to evaluate on; give data=FILE, or suite='pocket'"),
        ({"batchsize": 8}, "batchsize: there is no such option; did you mean batch_size"),
    ],
)
def test_wrong_options_are_named_in_python(toy_encoder: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        dino.evaluate(str(toy_encoder), progress=False, **options)


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "not JSON"), ('{"format": 2}', "format: "), ('{"format": 1, "scores": [1]}', "versions: Field required")],
)
def test_damaged_scores_are_named(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "scores.json").write_text(content)
    with pytest.raises(DataError, match=rf"scores\.json: holds no scores of this version \({said}"):
        ScoresFile.read(tmp_path / "scores.json")
    with pytest.raises(DataError, match="cannot be read: No such file"):
        ScoresFile.read(tmp_path / "nowhere.json")
