from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard, HfApi, ModelCard
from matplotlib.figure import Figure

import dino_pipeline as dino
from dino_pipeline.cards.card import BEGIN, END, GeneratorLicense, HandWritten, card_text, split_card
from dino_pipeline.cards.hub import Manifest, Repository, file_hashes, license_of, run_manifest
from dino_pipeline.errors import DataError, HubError, OptionError
from dino_pipeline.examples import Example, read_examples, write_examples
from dino_pipeline.files import shard_files
from dino_pipeline.funnel import Funnel
from dino_pipeline.models import ModelRef
from dino_pipeline.publishing import run_texts
from dino_pipeline.publishing.folders import size_category
from dino_pipeline.publishing.publish import publish_folder
from dino_pipeline.publishing.verify import Verification, verify_folder
from dino_pipeline.record import RunRecord, public
from dino_pipeline.run import Run
from tests.commands import answer, command, execute, files, invoke, refused
from tests.hub import TOKEN, Hub, Repo, local_hub

pytestmark = pytest.mark.slow

SPECS = Path(__file__).parent.parent / "task_specs"
OLD_RUN = Path(__file__).parent / "data" / "run-format-2"
MINE = Manifest(kind="dataset", origin="mine")


@pytest.fixture(scope="module")
def published(pocket_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its folders, nothing uploaded."""
    run = tmp_path_factory.mktemp("runs") / "sts"
    shutil.copytree(pocket_run, run)
    invoke("publish", run, "--repo", "me/sts", "--model-repo", "me/sts-encoder", "--license", "cc-by-4.0", "--dry-run")
    return run


@pytest.fixture
def run(published: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return shutil.copytree(published, tmp_path / "run")


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are most of a report's time, and test_report.py looks at them."""

    def savefig(figure: Figure, file: Any, format: str, **_: Any) -> None:
        file.write("<svg></svg>" if format == "svg" else b"picture")

    monkeypatch.setattr(Figure, "savefig", savefig)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A Hub on this machine, for this process too, and a client that does not wait between its attempts."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with local_hub() as found:
        yield found


def api(hub: Hub, token: str | bool = TOKEN) -> HfApi:
    return HfApi(endpoint=hub.address, token=token)


def dry_run(run: Path, *more: str | Path, repo: str = "me/sts", what: str = "") -> Path:
    """Write the folders of a run, upload nothing, and return the dataset's, or the model's if it is asked for."""
    asked = ("--what", what) if what else ()
    invoke("publish", run, "--repo", repo, "--dry-run", *asked, *more)
    return run / "hub" / (what or "dataset")


def texts_run(folder: Path, names: tuple[str, ...], *more: str) -> Path:
    """Filter single texts of some classes into a run."""
    rows = [Example(f"text {at} of <b>{name}", None, name) for at in range(30) for name in names]
    write_examples(folder / "texts.jsonl", rows)
    invoke("filter", folder / "texts.jsonl", "--run", folder / "run", "--near-duplicates", "0", *more)
    return folder / "run"


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def made_again(folder: Path, run: Path) -> str:
    """Run the commands of a dataset's card, which must make the very same dataset again, and return them."""
    (commands,) = blocks((folder / "README.md").read_text(), "sh")
    with contextlib.chdir(folder):
        for line in commands.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "dino"
            invoke(*arguments)
    for name in ("train.jsonl", "dev.jsonl", "dropped.jsonl"):
        assert (folder.parent / "again" / name).read_bytes() == (run / name).read_bytes()
    return commands


def test_the_dataset_loads_with_others_tools_and_counts_as_the_card_says(published: Path) -> None:
    folder = published / "hub" / "dataset"
    found = load_dataset(str(folder))
    train, dev = read_examples(published / "train.jsonl"), read_examples(published / "dev.jsonl")
    assert found["train"].column_names == ["sentence1", "sentence2", "score"]
    assert [tuple(row.values()) for row in found["train"]] == [(row.text_a, row.text_b, row.label) for row in train]
    raw = load_dataset(str(folder), "raw", split="train")
    written = [row.text_b for shard in shard_files(published / "shards") for row in read_examples(shard)]
    assert raw["text_b"][:] == written, "in the order of the shards"
    dropped = load_dataset(str(folder), "dropped", split="train")
    assert {"logprob", "margin", "input", "sample"} <= set(raw.column_names)
    assert {"reason", "evidence"} <= set(dropped.column_names)
    counts = [len(train), len(dev), 360, len(dropped)]
    rows = dict(zip(("default/train", "default/validation", "raw/train", "dropped/train"), counts, strict=True))
    assert json.loads((folder / "lineage.json").read_text())["rows"] == rows
    card = DatasetCard.load(folder / "README.md")
    infos = card.data.to_dict()["dataset_info"]
    assert rows == {
        f"{each['config_name']}/{part['name']}": part["num_examples"] for each in infos for part in each["splits"]
    }
    for name, count in rows.items():
        assert f"| {name.replace('/', ' | ')} | {count} |" in card.text
    data = card.data
    assert (data.language, data.license, data.size_categories) == ("en", "cc-by-4.0", "n<1K")
    assert data.annotations_creators == data.language_creators == ["machine-generated"]
    assert {"synthetic", "sentence-transformers"} <= set(data.tags)
    assert {path.name for path in folder.iterdir()} >= {"spec.json", "run.json", "report.html", "pictures"}
    for picture in re.findall(r"\]\((pictures/[^)]*)\)", card.text):
        assert (folder / picture).exists()


def test_every_command_and_code_block_of_the_cards_works(published: Path, tmp_path: Path) -> None:
    dataset, model = published / "hub" / "dataset", published / "hub" / "model"
    for name, folder in (("me/sts-encoder", model), ("me/sts", dataset)):
        (program,) = blocks((folder / "README.md").read_text(), "python")
        execute(program.replace(name, str(folder)))
    made_again(shutil.copytree(dataset, tmp_path / "copy"), published)


def test_the_dataset_trains_in_plain_sentence_transformers(
    published: Path, toy_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss

    data = load_dataset(str(published / "hub" / "dataset"), split="train").select(range(32))
    model = SentenceTransformer(str(toy_encoder))
    trainer = SentenceTransformerTrainer(model=model, train_dataset=data, loss=CosineSimilarityLoss(model))
    trainer.args.max_steps = 1
    trainer.train()


def test_the_models_card_tells_scores_and_data(published: Path, run: Path) -> None:
    folder = published / "hub" / "model"
    card = ModelCard.load(folder / "README.md")
    scores = json.loads((published / "scores.json").read_text())["scores"]
    name = "pocket finetuned"
    expected = {
        (each["data"], measure): (round(value["value"], 2), [round(value["low"], 2), round(value["high"], 2)])
        for each in scores
        if each["model"] == name
        for measure, value in each["measures"].items()
    }
    found = {
        (each.dataset_name, each.metric_type): (each.metric_value, each.metric_args["interval_95"])
        for each in card.data.eval_results
    }
    assert found == expected
    assert card.data.eval_results[0].metric_args["similarity"] == "cosine"
    assert "widget" not in card.data.to_dict()
    assert card.data.license == "cc-by-4.0"
    assert 'SentenceTransformer("me/sts-encoder")' in card.text
    train = read_examples(published / "train.jsonl")
    text = (folder / "README.md").read_text()
    assert not any(row.text_a in text for row in train), "no training sentences"
    again = dry_run(run, "--widgets", what="model") / "README.md"
    (widget,) = ModelCard.load(again).data.to_dict()["widget"]
    assert widget["source_sentence"] in {row.text_a for row in read_examples(run / "dev.jsonl")}
    invoke("evaluate", run, "pocket", "--suite", "pocket")
    dry_run(run, what="model")
    data = ModelCard.load(again).data
    assert "widget" not in data.to_dict(), "not asked for any more"
    own = next(each for each in json.loads((run / "scores.json").read_text())["scores"] if each["model"] == name)
    assert data.eval_results[0].metric_value == round(own["measures"]["spearman"]["value"], 2)
    assert len(data.eval_results) == 2, "this encoder's scores, not another's"
    invoke("filter", run, "--fresh", "--smoothing", "0.1")
    said = refused("publish", run, "--repo", "me/sts", "--dry-run")
    assert "the dataset was filtered again after the encoder was trained on it" in said


def test_classes_and_single_texts_have_their_own_columns(tmp_path: Path) -> None:
    run = texts_run(tmp_path, ("good", "b|ad's"))
    folder = dry_run(run, "--no-raw", repo="me/texts")
    found = load_dataset(str(folder), split="train")
    assert found.column_names == ["text", "label"]
    assert found.features["label"].names == ["b|ad's", "good"]
    assert {found.features["label"].int2str(row["label"]) in row["text"] for row in found} == {True}
    assert not (folder / "raw").exists()
    text = (folder / "README.md").read_text()
    assert DatasetCard(text).data.task_categories == ["text-classification"]
    assert "b\\|ad's" in text and "<b>" not in text
    assert "no encoder is trained there" in refused("publish", run, "--repo", "me/x", "--what", "model")


def test_classes_that_are_numbers_stay_classes(tmp_path: Path) -> None:
    run = texts_run(tmp_path, ("1", "2"), "--label-type", "class")
    folder = dry_run(run, repo="me/texts")
    assert load_dataset(str(folder), split="train").features["label"].names == ["1", "2"]
    assert "synthetic" not in (folder / "README.md").read_text()
    invoke("export", run, "--output", tmp_path / "out.jsonl")
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])["label"] in {"1", "2"}


def test_large_splits_are_cut_into_shards_in_order(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_texts, "SHARD", 20_000)
    folder = dry_run(run, what="dataset")
    shards = sorted((folder / "data").glob("train-*"))
    assert len(shards) > 1
    assert shards[-1].name == f"train-{len(shards) - 1:05d}-of-{len(shards):05d}.parquet"
    found = load_dataset(str(folder), split="train")
    assert found["sentence2"][:] == [row.text_b for row in read_examples(run / "train.jsonl")]
    before = file_hashes(folder)
    assert file_hashes(dry_run(run, what="dataset")) == before


def test_what_is_to_be_published_and_cannot_be_read_is_named(tmp_path: Path) -> None:
    run = Run(tmp_path)
    (split,) = run_texts.splits_of(run, run_texts.DataShape(True, None), raw=False)
    run.train.write_text('{"text_a": "a"\n')
    for name in ("damaged", "gone"):
        with pytest.raises(DataError, match=r"train\.jsonl: cannot be read .*; run dino\.filter\(\) again"):
            run_texts.write_split(split, tmp_path / name, tmp_path)
        run.train.unlink(missing_ok=True)


def test_a_run_is_published_and_exported_from_python(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = dino.report(run, progress=False)
    assert (report.path, report.missing) == (run / "report.html", {}) and "14 sections" in repr(report)
    opened: Counter[str] = Counter()

    def counting(path: Any, *arguments: Any, **others: Any) -> Any:
        opened.update([str(path)] if isinstance(path, str | Path) else [])
        return open_file(path, *arguments, **others)

    open_file = io.open
    with monkeypatch.context() as patch:
        patch.setattr(io, "open", counting)
        patch.setattr("builtins.open", counting)
        published = dino.publish(run, repo="me/sts", license="mit", dry_run=True, progress=False)
    assert opened[f"{run}/run.json"] <= 2, "by publish, and for the encoder of its report"
    assert opened[f"{run}/spec.json"] <= 3, "to be read, checked and copied"
    assert published.dataset and published.model and published.model.upload is None
    verification = dino.verify(published.dataset.folder)
    assert isinstance(verification, Verification)
    assert (verification.problems, verification.rerun_differences) == ([], [])
    exported = dino.export(published.dataset.folder, output=tmp_path / "pairs.jsonl", split="validation")
    assert exported.examples == len(read_examples(run / "dev.jsonl"))
    wrong: dict[str, tuple[Any, dict[str, Any]]] = {
        "repo: is missing": (dino.publish, {}),
        "license='my own': is not a license": (dino.publish, {"repo": "me/sts", "license": "my own"}),
        "what='all': must be one of dataset, model, both": (dino.publish, {"repo": "me/sts", "what": "all"}),
        "dry: there is no such option": (dino.publish, {"repo": "me/sts", "dry": True}),
        "split='test': must be one of train, validation": (dino.export, {"output": "x", "split": "test"}),
    }
    for said, (function, options) in wrong.items():
        with pytest.raises(OptionError, match=re.escape(said)):
            function(run, **options)


def test_texts_that_were_generated_from_python_are_published(tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_inputs": 8, "samples": 2, "run": tmp_path / "run", "progress": False}
    pairs = dino.generate(SPECS / "sts-x2.json", model="pocket", **options)
    dino.filter(pairs, near_duplicates=0, dev_share=0, progress=False)
    published = dino.publish(tmp_path / "run", repo="me/sts", dry_run=True, progress=False)
    assert published.dataset and published.model is None
    card = (published.dataset.folder / "README.md").read_text()
    assert "| generator | pocket |" in card and "--num-inputs 8 --samples 2" in card


def test_a_check_finds_what_was_changed(published: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(published / "hub" / "dataset", tmp_path / "dataset")
    assert "all as published" in invoke("verify", folder)
    assert verify_folder(folder).problems == [] and verify_folder(folder).rerun_differences == []
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").touch()
    assert verify_folder(folder).problems == []
    shutil.copytree(folder, tmp_path / ".cache" / "hub")
    assert verify_folder(tmp_path / ".cache" / "hub").problems == []
    (folder / "report.html").write_text("other")
    (folder / "data" / "validation-00000-of-00001.parquet").unlink()
    (folder / "stranger.txt").touch()
    text = (folder / "README.md").read_text()
    rows = json.loads((folder / "lineage.json").read_text())["rows"]
    count = rows["default/train"]
    (folder / "README.md").write_text(text.replace(f"num_examples: {count}", "num_examples: 7"))
    assert sorted(verify_folder(folder).problems) == sorted(
        [
            "report.html: is not the file that was published",
            "data/validation-00000-of-00001.parquet: is missing",
            "stranger.txt: was not published",
            f"default/validation: 0 rows, {rows['default/validation']} were published",
            f"README.md: claims 7 rows of default/train, {count} were published",
        ]
    )
    assert answer("verify", folder).exit_code == 1
    records = json.loads((folder / "run.json").read_text())
    records["generate"]["options"]["model"]["fingerprint"] = records["filter"]["inputs"]["excluded"] = "another"
    (folder / "run.json").write_text(json.dumps(records))
    expected = {"the embedded generator is another one here", "the embedded evaluation data is other data here"}
    assert set(verify_folder(folder).rerun_differences) == expected
    spec = json.loads((folder / "spec.json").read_text())
    (folder / "spec.json").write_text(json.dumps({**spec, "newlines": True}))
    (folder / "run.json").write_text("{")
    other = verify_folder(folder).rerun_differences
    assert any(re.match(r"spec\.json is \w+, the texts were written from \w+", each) for each in other), other
    assert any(each.startswith("run.json cannot be read (not JSON: Expecting") for each in other), other
    (folder / "README.md").write_bytes(b"\xff")
    assert "README.md: is not UTF-8 (byte 0); save it as UTF-8" in verify_folder(folder).problems
    (folder / "README.md").unlink()
    (folder / "data" / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    (folder / "spec.json").unlink()
    found = verify_folder(folder)
    assert f"default/train: 0 rows, {count} were published" in found.problems
    assert any(each.startswith("README.md: cannot be read") for each in found.problems)
    assert any(each.startswith("spec.json cannot be read") for each in found.rerun_differences)
    lineage = json.loads((folder / "lineage.json").read_text())
    (folder / "lineage.json").write_text(json.dumps({**lineage, "made_with": {"torch": "1.0"}}))
    assert "torch was 1.0" in verify_folder(folder).rerun_differences[0]
    assert "holds neither run.json nor lineage.json" in refused("verify", tmp_path)
    assert "is neither a folder here nor user/name" in refused("verify", "no/such/folder")
    for damaged in (b"\xff", b"[", json.dumps({**lineage, "rows": [1]}).encode()):
        (folder / "lineage.json").write_bytes(damaged)
        assert "this version cannot read its lineage.json" in refused("verify", folder)


def test_published_folders_are_read_by_our_own_commands(published: Path, tmp_path: Path, toy_encoder: Path) -> None:
    folder = published / "hub" / "dataset"
    train = len(read_examples(published / "train.jsonl"))

    def read(run: Path) -> int:
        return Funnel.of(Run(run).record().filter).total("read")

    invoke("filter", folder, "--run", tmp_path / "filtered")
    assert read(tmp_path / "filtered") == 360, "what was written"
    assert any(example.margin is not None for example in read_examples(tmp_path / "filtered" / "train.jsonl"))
    bare = shutil.copytree(folder, tmp_path / "bare")
    shutil.rmtree(bare / "raw")
    front, body = split_card((bare / "README.md").read_text())
    front = {**front, "configs": front["configs"][:1], "dataset_info": front["dataset_info"][:1]}
    (bare / "README.md").write_text(f"---\n{json.dumps(front)}\n---\n{body}")
    assert "This was filtered before" in answer("filter", bare, "--run", tmp_path / "again", "--no-balance").stderr
    labels = {example.label for example in read_examples(tmp_path / "again" / "train.jsonl")}
    assert (read(tmp_path / "again"), labels) == (train, {0.9, 0.5, 0.1, 0.0})
    invoke("filter", folder, "--run", tmp_path / "looked", "--dry-run")
    assert not (tmp_path / "looked").exists()
    invoke("finetune", folder, "--run", tmp_path / "trained", "--encoder", toy_encoder, "--steps", "1")
    dev = len(read_examples(published / "dev.jsonl"))
    assert json.loads((tmp_path / "trained" / "run.json").read_text())["finetune"]["dev"] == dev
    said = refused("publish", tmp_path / "trained", "--repo", "me/x", "--dry-run")
    assert "publish with --what model" in said
    trained = dry_run(tmp_path / "trained", repo="me/x", what="model")
    model = ModelCard.load(trained / "README.md")
    assert model.data.datasets == ["me/sts"] and "dino" in (model.data.tags or [])
    assert "[me/sts](https://huggingface.co/datasets/me/sts)" in model.text
    assert "The generator's licence is `apache-2.0`" in model.text
    assert "A rerun may differ" in invoke("verify", trained)
    assert "has texts of its own; name another folder" in refused("filter", folder, "--run", published)
    said = invoke("evaluate", published / "hub" / "model", "--data", folder, "--output", tmp_path / "scores.json")
    (score, *_) = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert score["size"] == dev
    assert "hub/model" in said
    for source in (published, folder):
        invoke("export", source, "--output", tmp_path / "original.jsonl")
        lines = [json.loads(line) for line in (tmp_path / "original.jsonl").read_text().splitlines()]
        assert len(lines) == train
        assert list(lines[0]) == ["text_a", "text_b", "label"]
    own = refused("export", folder, "--output", published / "dev.jsonl")
    assert "is read, or is a file of a run; give another" in own
    of_file = ("export", tmp_path / "original.jsonl", "--output", tmp_path / "x.jsonl")
    assert "is a file and has no splits" in refused(*of_file, "--split", "validation")


def test_a_generator_whose_licence_may_restrict_needs_a_licence(published: Path, run: Path, tmp_path: Path) -> None:
    model = tmp_path / "llama"
    model.mkdir()
    (model / "README.md").write_bytes(b"---\nlicense: mit\n---\nGr\xf6\xdfe")
    assert license_of(str(model)) is None, "it is not UTF-8"
    (model / "README.md").write_text("\ufeff---\nlicense: llama3.1\n---\n")
    records = json.loads((run / "run.json").read_text())
    records["generate"]["options"]["model"]["name"] = str(model)
    (run / "run.json").write_text(json.dumps(records))
    for what in ("dataset", "model"):
        said = refused("publish", run, "--repo", "me/sts", "--dry-run", "--what", what)
        assert "is llama3.1: it may restrict" in said
        folder = dry_run(run, "--license", "llama3.1", what=what)
        assert "Mind the generator's licence, `llama3.1`" in (folder / "README.md").read_text()
    records["finetune"]["origin"] = {"generate": records["generate"]}
    records["generate"] = json.loads((published / "run.json").read_text())["generate"]
    (run / "run.json").write_text(json.dumps(records))
    shutil.rmtree(run / "hub")
    assert "is llama3.1: it may restrict" in refused("publish", run, "--repo", "me/sts", "--dry-run")
    assert not (run / "hub").exists(), "both licenses are checked before anything is written"


def test_a_generator_s_licence_is_looked_up_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = {"them/free": {"license": "mit"}, "them/own": {"license": "llama3.1"}, "them/silent": {}, "them/bare": None}

    def model_info(hub: HfApi, name: str, timeout: float) -> SimpleNamespace:
        return SimpleNamespace(card_data=cards[name])  # KeyError: the Hub answers no better

    monkeypatch.setattr(HfApi, "model_info", model_info)
    found = [license_of(f"them/{name}") for name in ("free", "own", "silent", "bare", "gone")]
    assert found == ["mit", "llama3.1", None, None, None]
    assert [GeneratorLicense(each).restricts for each in found] == [False, True, True, True, True]


def by_hand(text: str, *, above: str = "", below: str = "") -> str:
    return f"{text.replace(BEGIN, above + BEGIN)}{below}"


def test_what_people_write_into_a_card_is_kept() -> None:
    first = card_text({"license": "mit", "tags": ["a"]}, "ours", HandWritten())
    edited = first.replace("license: mit", "license: mit\nextra: 7").replace("- a", "- a\n- mine")
    edited = by_hand(edited, above="Above\n", below="Below\n")
    again = card_text({"license": "cc0-1.0", "tags": ["a", "b"]}, "new", HandWritten.of(edited))
    front, body = split_card(again)
    assert front == {"license": "cc0-1.0", "extra": 7, "tags": ["a", "b", "mine"]}
    assert body.startswith("Above\n") and body.endswith("Below\n") and "new" in body and "ours" not in body
    assert card_text({"license": "cc0-1.0", "tags": ["a", "b"]}, "new", HandWritten.of(again)) == again
    with pytest.raises(HubError, match=r"README\.md: the front matter is not valid YAML"):
        HandWritten.of("---\nfield: [\n---\n")
    assert card_text({}, "new", HandWritten.of("# A card\n")).endswith(f"{END}\n\n# A card\n")
    assert [size_category(rows) for rows in (999, 1000, 10**6, 10**13)] == ["n<1K", "1K<n<10K", "1M<n<10M", "n>1T"]


def test_of_two_cards_the_one_that_people_changed_is_kept() -> None:
    published = HandWritten({"extra": 1, "tags": ["ours"]}, "", "\nFirst\n")
    here = HandWritten({"extra": 1, "tags": ["ours"]}, "Here\n", "\nFirst\n")
    there = HandWritten({"extra": 3, "tags": ["ours", "there"]}, "", "\nSecond\n")
    assert here.or_newer(published, published) == here
    assert published.or_newer(there, published) == there
    with pytest.raises(HubError, match=r"README\.md: people changed it here and on the Hub; bring both together here"):
        here.or_newer(there, published)
    both = HandWritten({"extra": 3, "tags": ["ours", "there"]}, "Here\n", "\nSecond\nFirst\n")
    assert both.or_newer(there, published) == there.or_newer(both, published) == both
    assert both.or_newer(there, HandWritten()) == both, "nothing was published before"


def test_cards_written_in_two_places_are_published_once_one_has_it_all(hub: Hub, tmp_path: Path) -> None:
    run, repo = Run(tmp_path / "run"), Repository("me/data", "dataset", api=api(hub))
    here, address = run.hub / "dataset" / "README.md", "datasets/me/data"

    def publish() -> str:
        def write(folder: Path, kept: HandWritten) -> None:
            (folder / "README.md").write_text(card_text({"license": "mit"}, "ours", kept))
            MINE.write(folder)

        repo.check(MINE)
        publish_folder(run.hub, repo, write, dry_run=False)
        return hub.repos[address].files["README.md"].decode()

    def edit_there(content: bytes) -> None:
        hub.repos[address].commits.append({**hub.repos[address].files, "README.md": content})

    edit_there(by_hand(publish(), below="Written there.\n").encode())
    here.write_text(by_hand(publish(), above="Written here.\n"))
    text = publish()
    assert "Written here." in text and text.endswith("Written there.\n")
    here.write_text(text.replace("Written there.", "Changed here."))
    edit_there(text.replace("Written there.", "Changed there.").encode())
    before = files(run.path)
    with pytest.raises(HubError, match=f"{here}: people changed it here and on the Hub"):
        publish()
    assert files(run.path) == before
    here.write_text(here.read_text().replace("Changed here.", "Changed there.\nChanged here."))
    assert publish().endswith("Changed there.\nChanged here.\n")
    whole = here.read_bytes()
    here.write_bytes(b"\xef\xbb\xbf" + whole)
    assert publish().encode() == whole, "a byte order mark is no text"
    here.write_bytes(whole + b"Gr\xf6\xdfe")
    with pytest.raises(HubError, match=f"{here}: is not UTF-8"):
        publish()
    here.unlink()
    edit_there(whole + b"Gr\xf6\xdfe")
    with pytest.raises(HubError, match=r"me/data/README\.md: is not UTF-8"):
        publish()


def small(tmp_path: Path, text: str = "rows") -> tuple[Path, Manifest]:
    folder = tmp_path / "folder"
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "data" / "train-00000-of-00001.parquet").write_text(text * 100)
    (folder / "README.md").write_text(card_text({"license": "mit"}, "ours", HandWritten()))
    manifest = MINE.updated(files=file_hashes(folder))
    manifest.write(folder)
    return folder, manifest


def test_a_repository_changes_by_one_commit_or_none_and_never_what_is_anothers(hub: Hub, tmp_path: Path) -> None:
    folder, _ = small(tmp_path)
    repo = Repository("me/data", "dataset", private=True, api=api(hub))
    repo.check(MINE)
    assert repo.replaceable is None
    first = repo.upload(folder)
    assert (first.changed, first.private, hub.repos["datasets/me/data"].private) == (True, True, True)
    repo.check(MINE)
    assert repo.replaceable
    again = repo.upload(folder)
    assert (again.changed, again.commit, len(hub.repos["datasets/me/data"].commits)) == (False, first.commit, 2)
    (folder / "data" / "train-00000-of-00001.parquet").rename(folder / "data" / "train-00000-of-00002.parquet")
    MINE.updated(files=file_hashes(folder)).write(folder)
    repo.upload(folder)
    files = hub.repos["datasets/me/data"]
    assert len(files.commits) == 3
    assert {name for name in files.files if name.startswith("data/")} == {"data/train-00000-of-00002.parquet"}
    files.commits.append({**files.files, "data/train-stranger.parquet": b"more", "lineage.json": b"{}"})
    with pytest.raises(HubError, match="holds files that this run did not make"):
        repo.check(MINE)
    repo.check(MINE, force=True)
    repo.upload(folder)
    assert "data/train-stranger.parquet" not in files.files, "nothing of theirs is among ours"


def test_many_files_are_one_commit_and_a_card_alone_is_nobodys(hub: Hub, tmp_path: Path) -> None:
    hub.repos["datasets/me/data"] = Repo(commits=[{"README.md": b"# Mine\n", ".gitattributes": b""}])
    folder, _ = small(tmp_path)
    for at in range(300):
        (folder / "data" / f"part-{at}.txt").write_text(f"{at}")
    (folder / "data" / "part [1].txt").write_text("brackets")
    MINE.updated(files=file_hashes(folder)).write(folder)
    repo = Repository("me/data", "dataset", api=api(hub))
    repo.check(MINE)
    assert repo.card(), "it is kept"
    repo.upload(folder)
    files = hub.repos["datasets/me/data"]
    assert (len(files.commits), len(files.files)) == (2, 305)
    (folder / "data" / "part [1].txt").unlink()
    MINE.updated(files=file_hashes(folder)).write(folder)
    repo.check(MINE)
    repo.upload(folder)
    assert (len(files.commits), len(files.files), "data/part-1.txt" in files.files) == (3, 304, True)


def test_a_card_that_cannot_be_read_now_is_not_taken_for_none(hub: Hub, tmp_path: Path) -> None:
    folder, _ = small(tmp_path)
    repo = Repository("me/data", "dataset", api=api(hub))
    repo.upload(folder)
    files = hub.repos["datasets/me/data"]

    def read(name: str) -> bytes | None:
        found = repo.fetch(name)
        return found.read_bytes() if found else None

    assert read("README.md") == files.files["README.md"]
    files.commits.append({**files.files, "README.md": files.files["README.md"] + b"By hand."})
    hub.fault("HEAD", "README.md", 500, 99)
    with pytest.raises(HubError):
        repo.fetch("README.md")
    hub.faults.clear()
    assert (read("README.md") or b"").endswith(b"By hand."), "no older copy answers"
    assert read("nothing.md") is None


def test_what_was_asked_for_tells_runs_apart() -> None:
    record = Run(OLD_RUN).record()
    assert record.generate and record.filter

    def manifest(samples: int, folder: str, **others: Any) -> Manifest:
        model = ModelRef(name=f"{folder}/m", fingerprint="f")
        options = record.generate.options.updated(samples=samples, model=model)  # type: ignore[union-attr]
        return run_manifest(record.with_stage(record.generate.updated(options=options)), "dataset", "me/data")  # type: ignore[union-attr]

    mine = manifest(2, "/home/one")
    assert manifest(2, "/home/two").is_of(mine) and not manifest(3, "/home/one").is_of(mine)
    assert not run_manifest(record, "model", "me/data").is_of(run_manifest(record, "dataset", "me/data"))
    filtered = [
        run_manifest(RunRecord(filter=record.filter.updated(sources=sources)), "dataset", "me/data") for sources in "ab"
    ]
    assert not filtered[0].is_of(filtered[1])
    older = mine.updated(format=1, origin="computed differently")
    assert older.is_of(mine) and not older.updated(repository="me/other").is_of(mine)
    assert public({"settings": {"base_url": "http://host.of.mine:8000/v1", "rows": 8}}) == {"settings": {"rows": 8}}
    assert public("/home/jo doe/a, b/x.tsv") == "x.tsv"
    assert public("Without /home/me/enc: /home/me/x y; see https://hub.co/a/b and a/b") == (
        "Without enc: x y; see https://hub.co/a/b and a/b"
    )


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (("POST", "/commit/", 409, 1), r"somebody else changed it at the same time.* \(HTTP 409\)"),
        (("POST", "/commit/", 0, 9), "nothing of it is visible there; run again"),
        (("POST", "/preupload/", 403, 1), r"the token has no right to write there.* \(HTTP 403\)"),
        (("PUT", "/objects/", 0, 9), "nothing of it is visible there; run again"),
        (("POST", "/repos/create", 401, 1), r"the Hub does not know who you are.* \(HTTP 401\)"),
        (("POST", "/commit/", 413, 1), r"too large.* \(HTTP 413\)"),
        (("POST", "/commit/", 412, 1), r"somebody else changed it at the same time \(HTTP 412\); run again"),
    ],
)
def test_faults_leave_nothing_half_published_and_a_rerun_completes(
    hub: Hub, tmp_path: Path, fault: tuple[str, str, int, int], said: str
) -> None:
    folder, manifest = small(tmp_path)
    hub.fault(*fault)
    repo = Repository("me/data", "dataset", api=api(hub))
    with pytest.raises(HubError, match=said) as error:
        repo.upload(folder)
    assert TOKEN not in str(error.value)
    assert all(len(each.commits) == 1 for each in hub.repos.values()), "nothing is to be seen"
    hub.faults.clear()
    uploads = hub.count("PUT", "/objects/")
    repo.upload(folder)
    assert dict(manifest.files) == {
        name: hashlib.sha256(content).hexdigest()
        for name, content in hub.repos["datasets/me/data"].files.items()
        if name.startswith("data/")
    }
    if "/commit/" in fault:
        assert hub.count("PUT", "/objects/") == uploads, "what was uploaded is not uploaded again"


def test_a_server_in_trouble_is_asked_again_and_no_answer_is_said_why(hub: Hub, tmp_path: Path) -> None:
    folder, _ = small(tmp_path)
    hub.fault("PUT", "/objects/", 500, 2)
    hub.fault("POST", "/preupload/", 503, 1)
    assert Repository("me/data", "dataset", api=api(hub)).upload(folder).changed
    with pytest.raises(HubError, match="log in with `hf auth login`, or set HF_TOKEN"):
        Repository("me/data", "dataset", api=api(hub, token=False)).upload(folder)
    nobody = HfApi(endpoint="http://127.0.0.1:9", token=TOKEN)
    with pytest.raises(HubError, match=r"me/data: .*run again"):
        Repository("me/data", "dataset", api=nobody).upload(folder)


def test_the_whole_way_to_the_hub_and_back(run: Path, tmp_path: Path) -> None:
    """The real commands publish a run through the unmodified client; others load it from there."""
    shutil.rmtree(run / "hub")
    with local_hub() as hub:
        client = {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}
        settings = {**os.environ, **client, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}

        def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
            return subprocess.run(command(*arguments), cwd=tmp_path, env=settings, capture_output=True, text=True)

        publish = ("publish", "run", "--repo", "me/sts", "--model-repo", "me/encoder", "--license", "cc-by-4.0")
        first = call(*publish)
        assert first.returncode == 0, first.stderr
        assert first.stdout.count("is published") == 2
        dataset, model = hub.repos["datasets/me/sts"], hub.repos["models/me/encoder"]
        text = model.files["README.md"].decode()
        assert ModelCard(text).data.datasets == ["me/sts"]
        assert f"/tree/{dataset.sha}" in text
        assert f"{hub.address}/me/encoder" in dataset.files["README.md"].decode()
        filtered = call("filter", "me/sts", "--run", "filtered", "--dev-share", "0")
        assert filtered.returncode == 0, filtered.stderr
        assert "trained on me/sts, commit" in call("verify", "me/encoder", "--model").stdout
        program = (
            "from datasets import load_dataset; from sentence_transformers import SentenceTransformer\n"
            "data = load_dataset('me/sts', 'raw', split='train'); model = SentenceTransformer('me/encoder')\n"
            "print(len(data), model.encode(['a dog']).shape)"
        )
        loaded = subprocess.run([sys.executable, "-c", program], env=settings, capture_output=True, text=True)
        assert loaded.stdout.split("\n")[0] == "360 (1, 128)", loaded.stderr
        written = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert not any(TOKEN.encode() in path.read_bytes() for path in written), "the token is nowhere"
        assert TOKEN not in first.stdout + first.stderr


def test_publishing_again_changes_nothing_and_refuses_what_is_not_its_own(
    hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
    files = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(run / "hub")
    publish = ("publish", "run", "--repo", "me/sts", "--model-repo", "me/encoder", "--license", "cc-by-4.0")
    assert invoke(*publish).count("is published") == 2
    dataset, model = hub.repos["datasets/me/sts"], hub.repos["models/me/encoder"]
    assert invoke(*publish).count("is up to date") == 2, "not even the order of the card's fields"
    assert (len(dataset.commits), len(model.commits)) == (2, 2)
    invoke(*publish, "--what", "dataset")
    assert "me/encoder" in dataset.files["README.md"].decode(), "still linked"
    edited = dataset.files["README.md"] + b"\nWritten by hand.\n"
    dataset.commits.append({**dataset.files, "README.md": edited})
    assert invoke(*publish).count("is up to date") == 2
    assert (dataset.files["README.md"], len(model.commits)) == (edited, 2)
    hub.repos["models/me/strange"] = Repo(commits=[{"model.safetensors": b"theirs"}])
    assert "exists, and is public" in refused(*publish, "--what", "dataset", "--private")
    strange = refused("publish", "run", "--repo", "me/other", "--model-repo", "me/strange")
    assert "that this run did not make" in strange
    assert "datasets/me/other" not in hub.repos and len(dataset.commits) == 3


def inside(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield all that stands in the files of a folder."""
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".parquet":
            yield path, "\n".join(map(str, pq.read_table(path).to_pylist()))
        elif path.is_file():
            yield path, path.read_bytes().decode("utf-8", errors="replace")


def test_nothing_published_names_a_place_on_this_machine(
    pocket_run: Path, toy_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, known = shutil.copytree(pocket_run, tmp_path / "run"), tmp_path / "client acme" / "known.txt"
    encoder = shutil.copytree(toy_encoder, tmp_path / "my-encoder")
    known.parent.mkdir()
    known.write_text(read_examples(run / "train.jsonl")[0].text_a + "\n")
    monkeypatch.chdir(tmp_path)
    excluded = ("--exclude", known.relative_to(tmp_path), "--exclude", "pocket")
    invoke("filter", run, "--fresh", *excluded, "--semantic", encoder, "--semantic-threshold", "1")
    invoke("finetune", run, "--fresh", "--encoder", encoder.relative_to(tmp_path), "--steps", "2")
    write_examples(tmp_path / "gold.jsonl", read_examples(run / "dev.jsonl"))
    invoke("evaluate", run, "--data", tmp_path / "gold.jsonl")
    folder = dry_run(run, "--license", "mit")
    places = (str(tmp_path), str(Path.home()), "acme")
    found = {(path, place) for path, text in inside(run / "hub") for place in places if place in text}
    assert found == set()
    card = (folder / "README.md").read_text()
    assert "They need what is not here: the file known.txt; the encoder my-encoder, a folder." in card
    dropped = load_dataset(str(folder), "dropped", split="train")
    assert "in evaluation data" not in dropped["reason"]
    evidence = [json.loads(line)["evidence"] for line in (run / "dropped.jsonl").read_text().splitlines()]
    assert any("known.txt, line 1" in each for each in evidence if each)


def test_what_is_dropped_so_that_nobody_sees_it_is_nowhere(tmp_path: Path) -> None:
    rows = [Example(f"A text of its own, number {at}.", f"And {at} more.", at % 2) for at in range(60)]
    rows[7] = Example("Write to jane.doe@example.com soon.", "And tell her.", 1.0)
    write_examples(tmp_path / "pairs.jsonl", rows)
    (tmp_path / "known.txt").write_text("A text of its own, number 8.\n")
    run = tmp_path / "run"
    filter_again = ("filter", tmp_path / "pairs.jsonl", "--run", run, "--near-duplicates", "0")
    invoke(*filter_again, "--pii", "drop", "--exclude", tmp_path / "known.txt")
    assert "jane.doe" in (run / "dropped.jsonl").read_text()
    folder = dry_run(run)
    assert not [path for path, text in inside(run / "hub") if "jane.doe" in text or "number 8." in text]
    card = (folder / "README.md").read_text()
    assert "2 dropped texts are not published: they hold personal data, or evaluation data." in card
    invoke(*filter_again, "--fresh", "--max-chars", "34")
    dry_run(run, "--no-raw")
    assert not [path for path, text in inside(run / "hub") if "jane.doe" in text]


def test_the_card_says_what_labels_mean(published: Path) -> None:
    text = (published / "hub" / "dataset" / "README.md").read_text()
    rows = [row for side in ("train", "dev") for row in read_examples(published / f"{side}.jsonl")]
    drawn = sum(row.input is None for row in rows)
    assert f"{drawn} of the pairs were written by nobody: they join texts at random, with score 0." in text
    assert "on one from 0 to 1, 1 becomes 0.9 and 0 becomes 0.1" in text
    assert {row.label for row in rows} == {0.9, 0.5, 0.1, 0.0}
    assert "| smoothing | 0.2 |" in text and "| near duplicates | 0.8 |" in text


def test_a_replacement_cut_short_by_a_crash_is_mended(run: Path) -> None:
    folder = run / "hub" / "dataset"
    text = (folder / "README.md").read_text()
    (folder / "README.md").write_text(f"{text}By hand.\n")
    folder.rename(folder.with_suffix(".old"))
    (run / "hub" / "dataset.part").mkdir()
    assert (dry_run(run, what="dataset") / "README.md").read_text().endswith("By hand.\n")
    assert sorted(path.name for path in (run / "hub").iterdir()) == ["dataset", "model", "published.json"]


CLASSES = {
    "task_name": "reviews",
    "language": "en",
    "license": "cc0-1.0",
    "label_type": "class",
    "variables": {"TOPIC": ["a dog", "a guitar"]},
    "labels": {
        "2": {"instruction": 'Write a sentence about <TOPIC>: "', "counter_labels": ["10"]},
        "10": {"instruction": 'Task: Write two sentences.\\nSentence 1: "<TOPIC>"\\nSentence 2: "'},
    },
}
ODD = ("--top-k", "0", "--top-p", "0.95", "--seed", "7", "--keep-newlines", "--keep-unfinished", "--min-words", "2")


@pytest.mark.parametrize("kind", ["classes", "brought", "more"])
def test_whatever_the_run_its_card_makes_it_again(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("classes.json").write_text(json.dumps(CLASSES))
    Path("my inputs.txt").write_text("A dog runs.\n" * 2 + "A man's guitar\nis old.\n\nShe sings.\n")
    options: dict[str, tuple[str | Path, ...]] = {
        "classes": ("classes.json", "--samples", "30", *ODD),
        "brought": (SPECS / "sts-x2.json", "--inputs", "my inputs.txt", "--num-inputs", "3", "--samples", "6", *ODD),
        "more": (SPECS / "sts-x2.json", "--num-inputs", "12", "--samples", "1", "--until-target", "14"),
    }
    invoke("generate", "--run", "run", *options[kind])
    if kind != "more":  # which was filtered as it grew
        limit = "2=5%" if kind == "classes" else "1%"
        invoke("filter", "run", "--dev-share", "0.2", "--labels", "hard", "--min-margin", limit)
    folder = dry_run(tmp_path / "run", "--license", "mit", repo="me/data")
    card = DatasetCard.load(folder / "README.md").text
    assert "They need what is not here" not in card
    assert verify_folder(folder).problems == verify_folder(folder).rerun_differences == []
    if kind == "classes":
        data = load_dataset(str(folder), split="train")
        assert (data.column_names, data.features["label"].names) == (["text", "label"], ["2", "10"])
        invoke("filter", folder, "--run", "second", "--dev-share", "0", "--near-duplicates", "0")
        second = read_examples("second/train.jsonl", numeric_labels=False)
        assert {example.label for example in second} == {"2", "10"}
    commands = made_again(folder, tmp_path / "run")
    assert ("--more" in commands, "--keep-newlines" in commands) == (kind == "more", kind != "more")


def test_what_cannot_be_published_is_said(published: Path, run: Path) -> None:
    shutil.rmtree(run / "hub")
    (run / "hub").touch()
    calls = {
        ("publish", run, "--repo", "me/sts", "--dry-run"): "cannot be written",
        ("publish", run, "--repo", "me/a--b", "--dry-run"): "is not the name of a repository",
        ("publish", run, "--repo", "sts", "--dry-run"): "give user/name",
        ("publish", run, "--repo", "me/sts", "--license", "my own"): "is not a license as the Hub spells it",
        ("publish", published / "hub" / "dataset", "--repo", "me/sts", "--dry-run"): "is not a run",
    }
    before = file_hashes(published / "hub" / "dataset")
    for call, said in calls.items():
        assert said in refused(*call)
    assert file_hashes(published / "hub" / "dataset") == before
