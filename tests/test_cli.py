"""The command line: exit codes, messages, help, start-up."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click import Command, Context, Option

from dino_pipeline import __version__, pocket
from dino_pipeline.cli import COMMANDS, main
from dino_pipeline.cli.spec_commands import spec_command
from dino_pipeline.encoder_options import OBJECTIVES
from dino_pipeline.examples import Example, read_examples, write_examples
from dino_pipeline.run import Run
from dino_pipeline.stage_records import FinetuneRecord
from tests.commands import accelerate, answer, dino, files, invoke, refused
from tests.pairs import Words
from tests.records import recorded
from tests.test_spec import SPECS

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "code",
    [
        "import dino_pipeline",
        "from dino_pipeline.cli import main; main(['--help'], standalone_mode=False)",
        "from dino_pipeline.cli import main; main(['spec', 'check', 'task_specs/sts-x2.json'], standalone_mode=False)",
    ],
)
def test_starting_up_imports_nothing_heavy(code: str) -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'datasets', 'scipy'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nassert not ({heavy}), {heavy}"], cwd=ROOT, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()


def test_the_module_is_the_command(tmp_path: Path) -> None:
    assert dino("--version", cwd=tmp_path).stdout == f"dino, version {__version__}\n"


def test_every_command_helps_and_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    commands = [[name] for name in COMMANDS if name != "spec"]
    commands += [["spec", name] for name in spec_command.commands]
    for command in commands:
        invoke(*command, "--help")
        assert f"dino {' '.join(command)}" in readme


def test_spec_check_says_what_is_wrong_and_exits_with_2(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"task_name": "t", "labels": {"1": {"instruction": "x"}}}')
    found = answer("spec", "check", SPECS / "sts-x2.json", tmp_path / "bad.json")
    assert found.exit_code == 2
    assert "sts-x2.json: fine (pairs, labels 1, 0.5, 0)" in found.output
    assert 'bad.json, label "1": the instruction must end with the opening "' in found.output


def test_spec_show_prints_the_exact_prompts() -> None:
    assert invoke("spec", "show", SPECS / "imdb-reviews.json", "--input", "Alien") == (
        "--- label 0 (counter-labels: 1)\n"
        'Task: Write a review for a bad movie.\nMovie: "Alien"\nReview: "\n'
        "--- label 1 (counter-labels: 0)\n"
        'Task: Write a review for a good movie.\nMovie: "Alien"\nReview: "\n'
    )
    refused("spec", "show", SPECS / "sts-x2.json")
    refused("spec", "show", SPECS / "sts-x1.json", "--input", "x")


def test_the_schema_knows_the_keys_of_the_shipped_specs() -> None:
    schema = json.loads(invoke("spec", "schema"))
    properties = schema.get("properties") or schema["$defs"]["TaskSpec"]["properties"]
    for path in SPECS.glob("*.json"):
        assert set(json.loads(path.read_text())) <= set(properties)


SERVER = ["generate", "sts-x2", "--engine", "openai", "--base-url"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "nowhere.json"], "error: nowhere.json, cannot be read: No such file"),
        (
            ["generate", "SPEC", "--model", "nowhere"],
            "error: nowhere: cannot be loaded as a causal language model (there is no such folder, and the Hub says: ",
        ),
        (["generate", "SPEC", "--model", "./nowhere"], "error: ./nowhere: there is no such folder"),
        (["evaluate", "./nowhere", "--suite", "pocket"], "error: ./nowhere: there is no such folder"),
        (["generate", "SPEC", "--model", "ENCODER"], "cannot be loaded as a causal language model"),
        (["generate", "SPEC", "--device", "gpu7"], "error: --device gpu7: "),
        (
            ["generate", "SPEC", "--device", "cpu", "--device-map", "auto"],
            "error: --device cpu: cannot be combined with the device map auto; leave out --device or --device-map",
        ),
        (["generate", "SPEC", "--inputs", "nowhere.txt"], "error: nowhere.txt: is not there"),
        (["filter", "nowhere"], "error: nowhere: is not there"),
        (["filter", "bad.jsonl"], "error: bad.jsonl: is a file; name the folder to write with --run"),
        (["filter", "folder", "--run", "r"], "error: --run r: folder is a run and keeps its own results; leave it out"),
        (["filter", "published"], "error: published: is a dataset; name the folder to write with --run"),
        (["filter", "folder", "--verify"], "error: folder: no texts are written there; run dino generate first"),
        (
            ["filter", "--list", "--verify-margin", "0.1"],
            "error: --verify-margin 0.1: applies to verification only; give --verify",
        ),
        (
            ["filter", "--list", "--temperature", "2"],
            "error: --temperature 2: applies to posterior labels only; give --labels posterior",
        ),
        (["filter", "bad.jsonl", "--run", "r"], "error: bad.jsonl, line 2: not JSON"),
        (["filter", "empty.jsonl", "--run", "r"], "error: empty.jsonl: holds no examples"),
        (["filter", "nan.jsonl", "--run", "r"], 'error: nan.jsonl, line 1: "label" must be a finite number'),
        (["finetune", "bad.jsonl", "--dev", "bad.jsonl", "--run", "r"], "error: bad.jsonl, line 2: not JSON"),
        (["evaluate"], "error: there is nothing to evaluate; give a run, or encoders by folder or Hub id"),
        (["finetune", "bad.jsonl"], "error: bad.jsonl: is not a run; name the folder to write with --run FOLDER"),
        (["finetune"], "error: nothing to train on; give a RUN, a FILE or a DATASET, or --list"),
        (["finetune", "bad.jsonl", "--run", "r", "--set", "x"], "error: --objective-options x: must be NAME=VALUE"),
        (
            ["finetune", "bad.jsonl", "--run", "r", "--objective", "dino", "--set", "x=1"],
            "error: x: dino has no such option; it has loss",
        ),
        (["finetune", "bad.jsonl", "--run", "r", "--matryoshka", "a"], "give whole numbers, as in 256,128,64"),
        (["finetune", "bad.jsonl", "--run", "r", "--matryoshka", "32,0"], "dimensions are 1 and more"),
        (["finetune", "bad.jsonl", "--run", "r", "--seed", "-1"], "error: --seed -1: must be at least 0"),
        (["finetune", "bad.jsonl", "--run", "r", "--split", "test"], "error: --split test: applies to a dataset in a"),
        (["filter", "bad.jsonl", "--run", "--dry-run"], "error: --run --dry-run: needs a value, which cannot begin"),
        (["finetune", "begun"], "train.jsonl: is not there; make it with dino filter begun, or name a file"),
        (["evaluate", "begun"], "error: begun: holds no trained encoder; run dino finetune begun first"),
        (["export", "begun", "--output", "o.jsonl"], "train.jsonl: is not there; run dino filter begun first"),
        (["spec", "new", "a b"], "error: 'a b' cannot name a spec; use letters"),
        (["spec", "new", "x", "--kind", "nonsense"], "Invalid value for '--kind'"),
        (["finetune", "gone.jsonl", "--run", "r"], "error: gone.jsonl: is not there"),
        (["compare", "bad.jsonl", "--run", "r", "--objectives", "x"], "error: --objectives x: must be one of triplets"),
        (["compare", "bad.jsonl", "--run", "r", "--objectives", ","], "names no objective; choose from triplets, dino"),
        (["compare", "pairs.jsonl", "--run", "r", *("--data", "pairs.jsonl") * 2], "error: pairs.jsonl: occurs twice"),
        (
            ["compare", "bad.jsonl", "--run", "r", "--suite", "pocket", "--set", "x=1"],
            "--objective-options x=1: must be OBJECTIVE:NAME=VALUE",
        ),
        (["evaluate", "ENCODER"], "error: there is no data to evaluate on; give --data FILE, or --suite pocket"),
        (["evaluate", "ENCODER", "--data", "empty.jsonl"], "error: empty.jsonl: holds no texts"),
        (["generate", "SPEC", "--samples", "0"], "error: --samples 0: must be at least 1"),
        (["generate", "sts-x2", "--inputs", "sts-x2"], "sts-x2: is neither a file or folder here nor a dataset"),
        (["generate", "sts-x9"], "no spec of that name comes with dino; see dino spec list"),
        (["filter", "outputs/mien"], "outputs/mien: is not there; give a run's folder or a file"),
        (["filter"], "give a run's folder or a file"),
        ([*SERVER, "http://h:80a0/v1"], "80a0/v1: is not an address"),
        (["generate", "sts-x2", "--engine", "openai"], "--engine openai: needs the server's address; give --base-url"),
        (["generate", "sts-x2", "--base-url", "http://x/v1"], "--base-url: belongs to the engine openai"),
        ([*SERVER, "http://x/v1", "--dtype", "float32"], "--dtype: belongs to the engine tra"),
        ([*SERVER, "http://x/v1", "--debias", "off", "--decay", "3"], "--decay: the server's texts are not debiased"),
        ([*SERVER, "http://x/v1", "--device", "cpu"], "--device cpu: belongs to a model that"),
        (["generate", "sts-x2", "--budget", "5"], "--until-target"),
        (["generate", "sts-x2", "--more", "0.7=3"], "--more 0.7=3: there is no such label; choose from 1, 0.5, 0"),
        (["generate", "sts-x2", "--more", "0.5=0"], "--more 0.5=0: is not LABEL=N"),
        (
            ["generate", "sts-x2", "--more", "0.5=2", "--until-target", "3"],
            "--more: cannot be combined with a target; leave out --more or",
        ),
    ],
)
def test_mistakes_are_named_and_exit_with_2(
    here: Path, toy_spec: Path, toy_encoder: Path, arguments: list[str], said: str
) -> None:
    (here / "bad.jsonl").write_text('{"text_a": "x", "text_b": "y", "label": 1}\n{"text_a": "z')
    (here / "empty.jsonl").write_text("")
    write_examples(here / "pairs.jsonl", Words().pairs(20))
    for name in ("folder", "begun", "published", "sts-x2"):
        (here / name).mkdir()
    (here / "begun" / "run.json").write_text('{"format": 2}')
    (here / "published" / "lineage.json").touch()
    (here / "nan.jsonl").write_text('{"text_a": "x", "text_b": "y", "label": NaN}')
    names = {"SPEC": str(toy_spec), "ENCODER": str(toy_encoder)}
    before = files(here)
    message = refused(*(names.get(argument, argument) for argument in arguments))
    assert said in message
    assert "Traceback" not in message
    assert files(here) == before, "nothing was begun"


@pytest.mark.slow
def test_the_whole_way_on_toys(here: Path, toy_spec: Path, toy_generator: Path, toy_encoder: Path) -> None:
    """Generate, filter, finetune, evaluate; then again, when nothing is left to do."""
    calls: list[list[str | Path]] = [
        ["generate", toy_spec, "--model", toy_generator, "--num-inputs", "30", "--run", "run"],
        ["filter", "run"],
        ["finetune", "run", "--encoder", toy_encoder, "--epochs", "1"],
        ["evaluate", "run"],
    ]
    for call in calls:
        done = dino(*call, cwd=here)
        assert done.returncode == 0, done.stderr
    assert "word overlap (Jaccard)" in done.stdout
    made = set(files(here / "run"))
    assert "Nothing was compared with evaluation data" in (here / "run" / "model" / "README.md").read_text()
    assert {"train.jsonl", "dev.jsonl", "flagged.jsonl", "dropped.jsonl", "scores.json", "model/README.md"} <= made
    before = {path: path.stat().st_mtime_ns for path in (here / "run").rglob("*") if path.name != ".lock"}
    for call in calls:
        assert "up to date" in invoke(*call)
    assert before == {path: path.stat().st_mtime_ns for path in (here / "run").rglob("*") if path.name != ".lock"}


@pytest.mark.slow
def test_finetune_runs_in_two_processes_that_share_what_is_shared(tmp_path: Path, toy_encoder: Path) -> None:
    """Negatives and remembered neighbours of both processes, and heads that stay equal though no wrapper syncs them."""
    rows = read_examples(pocket.GOLD_DEV)
    (tmp_path / "texts.txt").write_text("\n".join(row.text_a for row in rows))
    for name, part in (("train", rows[:320]), ("dev", rows[320:])):
        lines = (json.dumps({"text_a": row.text_a, "text_b": row.text_b, "label": str(row.label)}) for row in part)
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    call: list[str | Path] = ["finetune", "texts.txt", "--objective", "is-cse", "--run", "run", "--steps", "6"]
    done = accelerate(
        2, *call, "--batch-size", "16", "--set", "buffer=40", "--encoder", toy_encoder, cwd=tmp_path, program=WATCHED
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is trained") == 2, "for each of the two runs once"
    said = [json.loads((tmp_path / f"said-{rank}").read_text()) for rank in "01"]
    assert said[0]["seen"] == 96, "six steps of sixteen, from both processes"
    assert said[0] == said[1]
    assert said[0]["refused"] == 2, "every process refuses, and none waits for another"
    assert "seed was 42" in done.stderr
    record = json.loads((tmp_path / "pairs" / "run.json").read_text())["finetune"]
    assert (record["status"], record["settings"]["processes"], record["steps"]) == ("done", 2, 10)


WATCHED = """
import json, os, sys
from pathlib import Path
from dino_pipeline.cli import main
from dino_pipeline.training.objectives import view_objectives
made = []
plain = view_objectives.InstanceSmoothedLoss.__init__
def watched(self, *args):
    plain(self, *args)
    made.append(self)
view_objectives.InstanceSmoothedLoss.__init__ = watched
main(standalone_mode=False)
memory = made[0].memories["32"]
kept = (memory.entries, *made[0].heads.parameters())
sums = [round(float(tensor.detach().double().abs().sum()), 4) for tensor in kept]
try:
    main([*sys.argv[1:], "--seed", "7"], standalone_mode=False)
except SystemExit as error:
    refused = error.code
main(
    ["finetune", "train.jsonl", "--dev", "dev.jsonl", "--run", "pairs", *sys.argv[sys.argv.index("--encoder") :]],
    standalone_mode=False,
)
found = {"seen": int(memory.seen), "sums": sums, "refused": refused}
Path("said-" + os.environ["RANK"]).write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_finetune_learns_from_plain_text_and_lists_its_objectives(here: Path, toy_encoder: Path) -> None:
    listed = invoke("finetune", "--list")
    for name in OBJECTIVES:
        assert f"\n{name}: " in listed
    assert "--set span=5: Characters that are masked." in listed
    assert "--faithful: mask=characters, mean=padded, all weights decay" in listed
    assert "--faithful: refused; cpt has no code of its authors" in listed
    (here / "texts.txt").write_text("\n".join(row.text_a for row in read_examples(pocket.GOLD_DEV)[:150]))
    call: list[str | Path] = ["finetune", "texts.txt", "--objective", "mirror-bert", "--run", "run"]
    options: list[str | Path] = ["--encoder", toy_encoder, "--steps", "3", "--batch-size", "16", "--set", "span=9"]
    done = answer(*call, *options, "--faithful")
    assert done.exit_code == 0, done.stderr
    assert "is trained; dev alignment and uniformity: " in done.stdout, "the last checkpoint is kept"
    assert "batches of 16 rows leave 15 other rows" in done.stderr
    stage = json.loads((here / "run" / "run.json").read_text())["finetune"]
    assert stage["options"]["options"] == {"temperature": 0.04, "mask": "characters", "span": 9, "mean": "padded"}
    assert stage["selection"]["on"] == "texts.txt, held out"
    assert (stage["train"], stage["dev"]) == (135, 15)


@pytest.mark.slow
def test_compare_puts_objectives_on_one_table_and_redoes_no_cell(here: Path, toy_encoder: Path) -> None:
    rows = read_examples(pocket.GOLD_DEV)
    write_examples(here / "data.jsonl", rows[:200])
    write_examples(here / "gold.jsonl", rows[200:])
    write_examples(here / "people.jsonl", rows[100:200])
    call = ["compare", "data.jsonl", "--run", "run", "--encoder", str(toy_encoder), "--data", "gold.jsonl"]
    call += ["--seeds", "2", "--steps", "1", "--batch-size", "16", "--pooling", "mean", "--select-on", "people.jsonl"]
    shown = invoke(*call, "--objectives", "dino,mirror-bert", "--set", "dino:epochs=1")
    names = {line.split("  ")[0] for line in shown.splitlines()}
    assert {"word overlap (Jaccard)", "untrained", "dino*", "mirror-bert*"} <= names
    assert "* dino: chosen on human labels (people.jsonl)" in shown
    found = json.loads((here / "run" / "compare.json").read_text())
    assert [row["name"] for row in found["rows"]] == ["word overlap (Jaccard)", "untrained", "dino", "mirror-bert"]
    assert all(len(row["scores"]["gold.jsonl"]) == 2 for row in found["rows"][2:])
    assert (found["rows"][2]["rows"], found["rows"][2]["rows_seen"], found["seeds"]) == (200, 16, [42, 43])
    drawing = (here / "run" / "compare.svg").read_text()
    assert "mirror-bert" in drawing
    assert (here / "run" / "compare.md").read_text().startswith("| objective | learns from |")
    models = {path: path.stat().st_mtime_ns for path in here.rglob("model.safetensors")}
    assert len(models) == 4
    again = answer(*call, "--objectives", "dino,mirror-bert,simcse", "--set", "dino:epochs=1")
    assert again.exit_code == 0, again.stderr
    assert "dino, seed" not in again.stderr, "a finished cell is not trained again"
    assert models.items() <= {path: path.stat().st_mtime_ns for path in here.rglob("model.safetensors")}.items()
    invoke(*call, "--seeds", "1", "--set", "dino:epochs=1")
    found = json.loads((here / "run" / "compare.json").read_text())
    assert [row["name"] for row in found["rows"][2:]] == list(OBJECTIVES)
    stamped = invoke("evaluate", "run/dino/seed-42", "--data", "gold.jsonl")
    assert " finetuned: its checkpoint was chosen on human labels (people.jsonl)" in stamped
    scores = json.loads((here / "run" / "dino" / "seed-42" / "scores.json").read_text())
    assert [each["chosen_on_human_labels"] for each in scores["models"]] == [None, "people.jsonl"]
    assert "give whole numbers" in refused(*call, "--run", "none", "--set", "dino:matryoshka=a")
    assert "learning_rate was" in refused(*call, "--objectives", "dino", "--lr", "1")


@pytest.mark.slow
def test_filter_lists_its_rules_and_looks_without_writing(here: Path) -> None:
    lines = invoke("filter", "--list", "--max-chars", "77", "--without", "near-copy").splitlines()
    for rule in ("in evaluation data", "repetition", "conflicting labels", "near-duplicate input", "balance"):
        assert sum(line.startswith(rule) for line in lines) == 1
    assert next(line for line in lines if line.startswith("too long")).endswith("over 77 characters")
    assert "(off) text_b is text_a" in next(line for line in lines if line.startswith("near-copy"))
    write_examples(here / "data.jsonl", [*Words().pairs(20), Example("A dog runs.", "a dog, RUNS", 1.0)])
    (here / "odd_rules.py").write_text("def odd(example):\n    return 'odd' if example.sample == 1 else None\n")
    for mode in ("--dry-run", "--ablate"):
        shown = invoke("filter", "data.jsonl", mode, "--rule", "odd_rules:odd")
        assert [line.split()[-1] for line in shown.splitlines() if line.startswith("- identical texts")] == ["1"]
        assert [line.split()[-1] for line in shown.splitlines() if "odd" in line] == ["60"]
        assert "Nothing to drop for: empty, control characters" in shown
    assert {path.name for path in here.iterdir()} - {"__pycache__"} == {"data.jsonl", "odd_rules.py"}
    target = invoke("filter", "data.jsonl", "--run", "run", "--target-per-label", "50")
    assert "label 0.5: 10 of 50 are missing" in target


@pytest.mark.slow
def test_starting_over_with_a_model_that_is_not_there_loses_nothing(tmp_path: Path) -> None:
    call: list[str | Path] = ["generate", "sts-x2", "--run", tmp_path / "run", "--num-inputs", "2", "--samples", "1"]
    invoke(*call, "--storage", f"file://{tmp_path}/kept")
    before = {name: files(tmp_path / name) for name in ("run", "kept")}
    refused(*call, "--storage", f"file://{tmp_path}/kept", "--fresh", "--model", "nobody/nothing")
    assert {name: files(tmp_path / name) for name in ("run", "kept")} == before
    assert "texts are up to date" in invoke(*call)


@pytest.mark.slow
def test_starting_over_replaces_what_is_stored_and_another_machine_knows_what_the_run_was_told(tmp_path: Path) -> None:
    call: list[str | Path] = ["generate", "sts-x2", "--samples", "1", "--more", "0.5=1", "--shard-size", "4"]
    call += ["--storage", f"file://{tmp_path}/kept"]
    invoke(*call, "--num-inputs", "4", "--run", tmp_path / "here")
    last = tmp_path / "kept" / "shards" / "00003.jsonl"
    assert last.exists()
    other = [*call, "--num-inputs", "2", "--seed", "7"]
    invoke(*other, "--run", tmp_path / "here", "--fresh")
    assert "texts are up to date" in invoke(*other, "--run", tmp_path / "there")
    assert files(tmp_path / "there") == files(tmp_path / "here")
    assert not last.exists(), "there are fewer now"


@pytest.mark.slow
def test_storage_that_cannot_be_written_to_is_named_and_the_run_is_begun(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    call = ["generate", "sts-x2", "--num-inputs", "1", "--samples", "1", "--run", f"{tmp_path}/run"]
    said = refused(*call, "--storage", f"file://{tmp_path}/file/kept")
    assert f"error: file://{tmp_path}/file/kept: NotADirectoryError: " in said
    invoke(*call)


def test_specs_that_come_with_dino_have_names(here: Path) -> None:
    (here / "sts-x2").mkdir()
    assert "fine" in invoke("spec", "check", "sts-x2"), "a folder is no spec"
    (here / "sts-x2").rmdir()
    listed = invoke("spec", "list")
    for path in SPECS.glob("*.json"):
        assert f"{path.stem}  " in listed
    assert "counter-labels: 1, 0.5" in invoke("spec", "show", "sts-x2", "--input", "A dog.")
    (here / "sts-x2").write_text("{}")
    assert "task_name" in answer("spec", "check", "sts-x2").stderr, "a file that is there comes first"


def test_a_long_help_is_parted_and_says_every_option_once() -> None:
    said = invoke("generate", "--help")
    titles = [line for line in said.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles[:3] == ["Options:", "Inputs and texts:", "Sampling:"]
    generate = main.get_command(Context(main), "generate")
    assert isinstance(generate, Command)
    for option in (each for each in generate.params if isinstance(each, Option)):
        assert len(re.findall(rf"^  {option.opts[0]}(?![-\w])", said, re.MULTILINE)) == 1, option.name
        assert option.help, option.name


@pytest.mark.slow
def test_a_run_without_dev_pairs_is_trained_and_evaluated(tmp_path: Path, toy_encoder: Path) -> None:
    write_examples(tmp_path / "data.jsonl", Words().pairs(40))
    invoke("filter", tmp_path / "data.jsonl", "--run", tmp_path / "run", "--dev-share", "0")
    assert (tmp_path / "run" / "dev.jsonl").read_bytes() == b""
    invoke("finetune", tmp_path / "run", "--encoder", toy_encoder, "--steps", "1", "--batch-size", "16")
    assert "no data to evaluate on" in refused("evaluate", tmp_path / "run")


@pytest.mark.slow
def test_classes_that_look_like_numbers_stay_classes_in_training(here: Path, toy_encoder: Path) -> None:
    rows = [Example(f"Text {at} of {name} kind.", None, name) for at in range(6) for name in ("0", "1")]
    write_examples(here / "data.jsonl", rows)
    options = ("--label-type", "class", "--dev-share", "0", "--near-duplicates", "0")
    invoke("filter", "data.jsonl", "--run", "run", *options)
    invoke("finetune", "run", "--encoder", toy_encoder, "--steps", "1", "--batch-size", "4")
    record = recorded(Run(here / "run"), FinetuneRecord)
    assert record.head and record.head.classes == ("0", "1")
    assert record.selection and record.selection.measure != "Spearman", "the one text held out is of one class"
