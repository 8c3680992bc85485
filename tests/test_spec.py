from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import dino_pipeline
from dino_pipeline.cli import main
from dino_pipeline.errors import SpecError
from dino_pipeline.options import Sampling
from dino_pipeline.spec import LabelSpec, SpecSampling, TaskSpec
from dino_pipeline.spec_file import load_spec
from tests.commands import invoke, refused

SPECS = Path(__file__).parent.parent / "task_specs"
PLAIN: dict[str, Any] = {
    "task_name": "t",
    "labels": {
        "1": {"instruction": 'Same as "<X1>": "', "counter_labels": []},
        "0": {"instruction": 'Unlike "<X1>": "', "counter_labels": ["1"]},
    },
}


def changed(change: dict[str, Any]) -> dict[str, Any]:
    """The plain spec with values set at dotted places."""
    spec = json.loads(json.dumps(PLAIN))
    for place, value in change.items():
        *parents, last = place.split("/")
        target = spec
        for parent in parents:
            target = target[parent]
        target[last] = value
    return spec


def problems(tmp_path: Path, content: bytes | dict[str, Any]) -> list[str]:
    path = tmp_path / "spec.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    try:
        load_spec(path)
    except SpecError as error:
        lines = str(error).splitlines()
        found = error.problems
    else:
        return []
    assert all(line.startswith(f"{path}, ") for line in lines)
    return found


def topic(values: object) -> dict[str, Any]:
    """A change that adds a variable, and an instruction that holds it."""
    return {"variables": {"TOPIC": values}, "labels/1/instruction": '<TOPIC> <X1>: "'}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lables": {}}, ["lables: unknown key"]),
        ({"labels/1/instructions": "x"}, ['label "1", instructions: unknown key']),
        ({"labels/0/counter_labels": ["2"]}, ['label "0": counter label "2" is not a label; choose from "1", "0"']),
        ({"labels/0/counter_labels": ["0"]}, ['label "0": counter label "0" is the label itself']),
        ({"labels/0/counter_labels": ["1", "1"]}, ['label "0": a counter label occurs twice']),
        ({"labels/0/counter_labels": [1]}, ['label "0", counter_labels, item 1: must be a string (it is 1)']),
        ({"labels/0/counter_labels": "1"}, ['label "0", counter_labels: must be a list (it is "1")']),
        ({"labels/0/instruction": 'No end "<X1>"'}, []),
        ({"labels/0/instruction": "No end <X1>"}, ['label "0": the instruction must end with the opening "']),
        ({"labels/0/instruction": 'Without: "'}, ['label "0": the instruction lacks <X1>, which other labels have']),
        ({"labels/0/instruction": '<X1> <X1> "'}, ['label "0": the instruction holds <X1> 2 times; keep one']),
        ({"labels/0/instruction": 7}, ['label "0", instruction: must be a string (it is 7)']),
        ({"labels/0/instruction": '<X1> <TOPIC> "'}, ['label "0": variable <TOPIC> is not defined']),
        ({"variables": {"TOPIC": ["a"]}}, ["variables, TOPIC: no instruction holds <TOPIC>"]),
        ({"variables": {"TOPIC": []}}, ["variables, TOPIC: must not be empty", "variables, TOPIC: no instruction"]),
        ({"labels": {}}, ["labels: must not be empty"]),
        ({"labels": []}, ["labels: must be an object"]),
        ({"labels/1": "x"}, ['label "1": must be an object (it is "x")']),
        ({"labels/": {"instruction": '<X1> "'}}, ["labels: a label has no name"]),
        ({"labels/1.0": {"instruction": '<X1> "'}}, ["labels: two of"]),
        ({"labels/5": {"instruction": '<X1> "'}}, ['label "5": a similarity lies between 0 and 1']),
        ({"labels/1e999": {"instruction": '<X1> "'}}, ['label "1e999": a similarity lies between 0 and 1']),
        ({"labels/-1": {"instruction": '<X1> "'}, "label_type": "class"}, []),
        ({"task_name": "a b"}, ["task_name: "]),
        ({"task_name": None}, ["task_name: must be a string (it is null)"]),
        ({"sampling": {"top_p": 2}}, ["sampling, top_p: "]),
        ({"sampling": {"top_q": 2}}, ["sampling, top_q: unknown key"]),
        ({"stop": ""}, ["stop: must not be empty"]),
        (
            {"stop": "\n\n", "labels/1/instruction": "<X1>\n\n", "labels/0/instruction": "<X1>\n\n"},
            ["stop: a newline ends a text before '\\n\\n' can come; add \"newlines\": true"],
        ),
        (
            {"stop": "\n", "labels/1/instruction": "<X1>\n", "labels/0/instruction": "<X1>\n"},
            [],
        ),
        (
            {"stop": "\n\n", "newlines": True, "labels/1/instruction": "<X1>\n\n", "labels/0/instruction": "<X1>\n\n"},
            [],
        ),
        ({"stop": "»"}, ['label "1": the instruction must end with the opening »', 'label "0": the instruction']),
        ({"label_type": "score", "labels/x": {"instruction": '<X1> "'}}, ["label_type: 'score' needs labels"]),
        ({"inputs": "nowhere.json"}, ["inputs ("]),
        ({"inputs": "../other.json"}, ["inputs: ../other.json lies outside the spec's folder"]),
        ({"inputs": "/etc/passwd"}, ["inputs: /etc/passwd lies outside the spec's folder"]),
        (topic("../../etc/passwd"), ["variables, TOPIC: ../../etc/passwd lies outside"]),
        (topic("link.txt"), ["variables, TOPIC: link.txt lies outside"]),
        (topic("latin-1.txt"), ["variables, TOPIC: latin-1.txt, byte 1 is not UTF-8"]),
        (topic("a\0b"), ["variables, TOPIC: "]),
        (topic("no.txt"), ["variables, TOPIC: no.txt cannot"]),
        (topic(["a", 'b "c"']), ["variables, TOPIC: 'b \"c\"' holds the stop string"]),
        ({"labels/1/examples": [{"text": "a"}]}, ['label "1", examples, item 1: nothing fills <X1>; add "input"']),
        ({"labels/1/examples": [{"input": "a"}]}, ['label "1", examples, item 1, text: missing']),
        (
            {
                "stop": "»",
                "labels/1": {"instruction": "<X1>: «", "examples": [{"input": "a", "text": "b»"}]},
                "labels/0": {"instruction": "<X1>: «"},
            },
            ["label \"1\", examples, item 1: 'b»' holds the stop string »"],
        ),
        ({"variables": {"X1": ["a"]}}, ["variables, X1: the name is taken by the input"]),
        ({"description": "😀"}, []),
        (
            {"labels/1/examples": [{"input": "a", "text": "b", "variables": {"TOPIC": "c"}}]},
            ['label "1", examples, item 1: the instruction lacks <TOPIC>'],
        ),
        ({"inputs": "spec.json"}, ["inputs: spec.json leads back to this spec"]),
        ({"inputs": {"task_name": "i", "labels": {"a": {"instruction": '<X1> "'}}}}, ["inputs: its instructions hold"]),
        ({"inputs": {"task_name": "i", "labels": {"a": {"instruction": "x"}}}}, ['inputs, label "a": the instruction']),
    ],
)
def test_every_mistake_is_named_with_its_place(tmp_path: Path, change: dict[str, Any], said: list[str]) -> None:
    """Files that are not beside the spec are not read: it may come from a stranger."""
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "latin-1.txt").write_bytes(b"B\xe4r")
    (tmp_path / "specs" / "link.txt").symlink_to("/etc/hostname")
    found = problems(tmp_path / "specs", changed(change))
    assert len(found) == len(said), found
    for problem, start in zip(found, said, strict=True):
        assert problem.startswith(start), problem


def test_all_mistakes_of_a_file_are_named_at_once(tmp_path: Path) -> None:
    spec = changed({"lables": {}, "labels/0/counter_labels": ["7"], "labels/1/instruction": 3})
    assert len(problems(tmp_path, spec)) == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"task_name": "t", ', "line 1, column 20: not JSON"),
        (b'{"task_name": "\xff"}', "byte 15 is not UTF-8"),
        (b'{"task_name": "t", "labels": {"1": {}, "1": {}}}', 'labels: key "1" occurs twice'),
        (b"[]", "top level: must be an object"),
        (b"[" * 100_000, "top level: nested too deeply"),
        (b'{"x": "' + b"a" * 17 * 2**20 + b'"}', "is larger than 16 MiB"),
        (b'{"task_name": "\\ud800"}', "half of a surrogate pair"),
        (b'{"task_name": "../../../home", "labels": {}}', "task_name"),
        (b"\xff\xfe", "byte 0 is not UTF-8"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_file_that_is_no_spec_at_all(tmp_path: Path, content: bytes, said: str) -> None:
    assert said in problems(tmp_path, content)[0]
    assert said in refused("spec", "check", tmp_path / "spec.json")


def test_a_spec_comes_from_a_file_a_shipped_name_or_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = dino_pipeline.load_spec("sts-x2")
    assert shipped == load_spec(SPECS / "sts-x2.json") == load_spec(shipped)
    assert load_spec(PLAIN) == TaskSpec.model_validate(PLAIN)
    with pytest.raises(SpecError, match=r'spec, label "0": counter label "2" is not a label'):
        load_spec(changed({"labels/0/counter_labels": ["2"]}))
    with pytest.raises(SpecError, match=r"spec, top level: cannot be written as JSON"):
        load_spec({"task_name": object()})
    neither = r"sts-x9, top level: is neither a file nor the name of a shipped spec; choose from .*sts-x2"
    for missing, said in ((tmp_path / "none.json", r"none.json, cannot be read: No such file"), ("sts-x9", neither)):
        with pytest.raises(SpecError, match=said):
            load_spec(missing)


def test_two_specs_that_name_each_other_are_refused(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.json").write_text(json.dumps(changed({"inputs": f"{other}.json"})))
    with pytest.raises(SpecError, match="leads back"):
        load_spec(tmp_path / "a.json")


def counters(name: str) -> dict[str, tuple[str, ...]]:
    return {label: rule.counter_labels for label, rule in load_spec(SPECS / name).labels.items()}


def test_the_papers_specs_are_as_published() -> None:
    """Labels, instructions, counter-labels and sampling are those of timoschick/dino."""
    assert counters("sts-x2.json") == {"1": (), "0.5": ("1",), "0": ("1", "0.5")}
    assert counters("sts-x1.json") == {"1": (), "0.5": (), "0": ()}
    assert counters("imdb-movies.json") == {"0": (), "1": ()}
    assert counters("imdb-reviews.json") == {"0": ("1",), "1": ("0",)}
    first, second, movies, reviews = [
        load_spec(SPECS / f"{name}.json") for name in ("sts-x1", "sts-x2", "imdb-movies", "imdb-reviews")
    ]
    tasks = {"1": "mean the same thing", "0.5": "are somewhat similar", "0": "are on completely different topics"}
    for label, task in tasks.items():
        asked = f'Task: Write two sentences that {task}.\nSentence 1: "'
        assert first.labels[label].instruction == asked
        assert second.labels[label].instruction == f'{asked}<X1>"\nSentence 2: "'
    for label, kind in (("0", "bad"), ("1", "good")):
        asked = f'Task: Write a review for a {kind} movie.\nMovie: "'
        assert movies.labels[label].instruction == asked
        assert reviews.labels[label].instruction == f'{asked}<X1>"\nReview: "'
    for spec in (first, second, movies, reviews):
        assert spec.sampling == SpecSampling(), spec.task_name
    wide = load_spec(SPECS / "sts-x1-wide.json")
    assert (wide.digest, wide.sampling) == (first.digest, SpecSampling(top_k=0, top_p=0.95))
    assert second.inputs == wide, "as in runs from before sts-x1 sampled as published"
    assert Sampling() == Sampling(top_k=5, top_p=0.9, decay=100, floor=0.01, max_new_tokens=40)


def test_numeric_labels_are_numbers_unless_they_are_classes() -> None:
    similarity, classes = load_spec(SPECS / "sts-x2.json"), load_spec(SPECS / "imdb-reviews.json")
    assert [similarity.value(label) for label in similarity.labels] == [1.0, 0.5, 0.0]
    assert [classes.value(label) for label in classes.labels] == ["0", "1"]
    assert spec_with({"labels/other": {"instruction": '<X1> "'}}).value("1") == "1"


def spec_with(change: dict[str, Any]) -> TaskSpec:
    return TaskSpec.model_validate(changed(change))


@given(st.text())
@example("<TOPIC> <X1> \\1")
def test_an_input_is_inserted_literally(text: str) -> None:
    spec = spec_with({"labels/1/instruction": '<TOPIC>: <X1> in <TOPIC>: "', "variables": {"TOPIC": ["art"]}})
    assert spec.prompt("1", text, {"TOPIC": "art"}) == f'art: {text.replace(chr(34), chr(39))} in art: "'


def test_a_stop_string_in_an_input_is_softened_or_refused() -> None:
    assert spec_with({}).can_show('say "hi"')
    other = spec_with({"stop": "»", "labels/1/instruction": "<X1>: «", "labels/0/instruction": "<X1>: «"})
    assert other.can_show('say "hi"')
    assert not other.can_show("dire «oui»")
    assert other.prompt("1", 'say "hi"') == 'say "hi": «'


def test_the_digest_follows_what_decides_the_texts() -> None:
    plain = spec_with({}).digest
    assert plain == spec_with({"description": "other", "language": "de"}).digest
    assert plain != spec_with({"labels/0/counter_labels": []}).digest


def test_examples_stand_before_the_instruction_in_their_order() -> None:
    shots = [
        {"input": 'A "cat"', "text": "A pet", "variables": {"TOPIC": "art"}},
        {"input": "<TOPIC>", "text": 'It is "so"', "variables": {"TOPIC": "law"}},
    ]
    change = {"labels/1/instruction": '<TOPIC>: "<X1>": "', "labels/1/examples": shots, "variables": {"TOPIC": ["a"]}}
    spec = spec_with(change)
    assert spec.prompt("1", "x", {"TOPIC": "a"}) == (
        'art: "A \'cat\'": "A pet"\n\nlaw: "<TOPIC>": "It is \'so\'"\n\na: "x": "'
    )
    reversed_ = spec_with({**change, "labels/1/examples": shots[::-1]})
    without = spec_with({**change, "labels/1/examples": []})
    assert len({spec.digest, reversed_.digest, without.digest}) == 3
    del change["labels/1/examples"]
    assert spec_with(change).digest == without.digest
    long = spec_with({"labels/1/examples": [{"input": "x", "text": "A long text that none repeats"}]})
    assert "A long text that none repeats" in long.fields


def test_variables_come_from_files_beside_the_spec(tmp_path: Path) -> None:
    folder = tmp_path / "specs"
    folder.mkdir()
    (folder / "topics.txt").write_text("\ufeffart\n\n law \n", encoding="utf-8")
    change: dict[str, Any] = {"labels/1/instruction": '<TOPIC>: "<X1>": "', "variables": {"TOPIC": "topics.txt"}}
    inputs = {"task_name": "i", "labels": {"a": {"instruction": '<T>: "'}}, "variables": {"T": "topics.txt"}}
    (folder / "spec.json").write_text(json.dumps(changed({**change, "inputs": inputs})))
    found = load_spec(folder / "spec.json")
    assert found.variables == {"TOPIC": ["art", "law"]}
    assert isinstance(found.inputs, TaskSpec) and found.inputs.variables == {"T": ["art", "law"]}
    assert spec_with({**change, "variables": {"TOPIC": ["art", "law"]}}).digest == found.digest


def test_the_beginning_of_an_answer() -> None:
    def opening(instruction: str, stop: str = '"') -> str:
        return TaskSpec(task_name="t", labels={"a": LabelSpec(instruction=instruction)}, stop=stop).opening("a")

    assert opening('Task: Write.\nSentence 1: "<X1>"\nSentence 2: "') == 'Sentence 2: "'
    assert opening('Write a sentence: "') == opening('Task: Write.\nAbout <X1>: "') == '"'
    assert opening("Schreibe einen Satz: „", "“") == "„"


@pytest.mark.parametrize("kind", ["similarity", "classes", "pairs"])
def test_a_spec_to_begin_with_is_right_and_commented(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "new.json"
    labels = () if kind == "similarity" else ("--labels", "good, bad,good")
    invoke("spec", "new", "mine", "--kind", kind, "--about", "review", *labels, "--output", path)
    spec = load_spec(path)
    assert '"//' in path.read_text() and spec.needs_inputs == (kind != "classes")
    assert list(spec.labels) == (["1", "0.5", "0"] if kind == "similarity" else ["good", "bad"])
    assert spec.labels["0" if kind == "similarity" else "bad"].counter_labels
    assert "is there already" in refused("spec", "new", "mine", "--kind", kind, "--about", "x", "--output", path)
    asked = refused("spec", "new", "mine", "--output", tmp_path / "other.json")
    assert "--kind is missing, and there is nobody to ask" in asked


class Terminal(io.StringIO):
    """Somebody who answers."""

    def isatty(self) -> bool:
        return True


def test_what_no_option_says_is_asked_until_it_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("nonsense\nclasses\nreview\n\n"))
    main(["spec", "new", "mine", "--output", f"{tmp_path / 'new.json'}"], standalone_mode=False)
    labels = load_spec(tmp_path / "new.json").labels
    assert labels["good"].instruction == 'Task: Write a review (TODO: what good means).\nReview: "'
    assert list(labels) == ["good", "bad"], "as nothing else was asked for"


def test_what_would_be_wrong_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "new.json"
    begun = ("spec", "new", "mine", "--kind", "similarity", "--about", "text", "--output", path)
    for labels in ("1,2", ",", "//x,b"):
        assert f"--labels {labels}: " in refused(*begun, "--labels", labels)
        assert not path.exists()
    invoke(*begun, "--labels", "0,0.5,1")
    spec = load_spec(path)
    assert {name: label.counter_labels for name, label in spec.labels.items()} == {
        "1": (),
        "0.5": ("1",),
        "0": ("1", "0.5"),
    }


def test_comments_and_a_byte_order_mark_change_nothing(tmp_path: Path) -> None:
    spec = {"//": "mine", **changed({})}
    spec["labels"]["1"]["// why"] = "because"
    (tmp_path / "spec.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(spec).encode())
    assert load_spec(tmp_path / "spec.json") == load_spec(PLAIN)
