"""What `import dino_pipeline` offers: its names, README's program, and the same options as the command line."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

import dino_pipeline as dino
from dino_pipeline.cli import main
from dino_pipeline.errors import OptionError, RunError
from dino_pipeline.options import Options, flags_of

ROOT = Path(__file__).parent.parent
SENTENCES = [
    "A man is walking his dog.",
    "Two women eat an apple in the park.",
    "A boy reads a book on the sofa.",
    "The girl paints the wall of her house.",
    "Some people sing in a church.",
    "A cat sleeps on the bed.",
    "A doctor visits an old friend.",
    "Three guys build a small boat.",
]
VERBS = ("preview", "generate", "filter", "finetune", "compare", "evaluate", "report", "publish", "verify", "export")


def options_of(verb: str) -> type[Options]:
    model: type[Options] = getattr(dino, verb).options
    return model


def test_the_public_names_are_these() -> None:
    classes = ["Comparison", "Example", "FilteredPairs", "GeneratedTexts", "Generator", "Preview", "Run", "Scores"]
    errors = ["DataError", "DinoError", "HubError", "ModelError", "OptionError", "OutputError", "RunError", "SpecError"]
    others = ["Stopped", "TaskSpec", "load_generator", "load_spec"]
    assert sorted(dino.__all__) == sorted([*classes, *errors, *VERBS, *others])
    assert dir(dino) == sorted([*dino.__all__, "__version__"])
    for name in dino.__all__:
        assert inspect.getdoc(getattr(dino, name)), name
    with pytest.raises(AttributeError, match="no attribute 'generat'"):
        dino.generat  # noqa: B018


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(dino.__file__).read_text())
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert {*imported} - {"annotations", "import_module", "TYPE_CHECKING", "Any"} == {*dino.__all__}
    assert (Path(dino.__file__).parent / "py.typed").exists()


def test_importing_it_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'pydantic', 'datasets', 'click', 'numpy'}"
    code = f"import sys, dino_pipeline; assert not {heavy} & sys.modules.keys(); dino_pipeline.load_spec('sts-x2')"
    subprocess.run([sys.executable, "-c", code + "; assert 'torch' not in sys.modules"], check=True)


@pytest.mark.slow
def test_readmes_program_runs(here: Path) -> None:
    section = (ROOT / "README.md").read_text().partition("## From Python")[2].partition("\n## ")[0]
    program, decoder = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    program = re.sub(r'"(gpt2-xl|roberta-base)"', '"pocket"', program)
    lines = [f"{text}\t{text[::-1]}\t{number % 6 / 5}" for number, text in enumerate(SENTENCES)]
    (here / "stsb.tsv").write_text("\n".join(["text_a\ttext_b\tlabel", *lines]))
    names: dict[str, Any] = {"sentences": SENTENCES}
    exec(program, names)
    pairs, kept, scores = names["pairs"], names["kept"], names["scores"]
    assert {example.text_a for example in pairs} <= {*SENTENCES}
    assert len(kept) == len(kept.train) == kept.to_dataset().num_rows == len(kept.to_pandas())
    assert kept.funnel
    assert all(drop.reason for drop in kept.dropped)
    assert names["encoder"].encode(["A dog."]).shape[0] == 1
    for result in (pairs, kept, scores):
        assert len(repr(result)) > 10
    names["own_prompt"] = names["spec"].prompt("0.5", SENTENCES[0], {})
    texts = eval(decoder.strip().replace('"gpt2"', '"pocket"').replace("[...]", "[own_prompt]"), names)
    assert [text.number for text in texts] == list(range(8))
    assert not list(here.glob("outputs/*")), "nothing is kept without run="


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_takes_what_its_command_takes(verb: str) -> None:
    model, function = options_of(verb), getattr(dino, verb)
    command = main.get_command(click.Context(main), verb)
    assert command
    options = [each for each in command.params if isinstance(each, click.Option) and "--list" not in each.opts]
    flags = {each.name for each in options}
    visible = {name for name, flag, _ in flags_of(model) if not flag.hidden}
    arguments = {*inspect.signature(function).parameters}
    assert flags == visible
    assert visible <= arguments, "and its signature lists them"


@pytest.mark.parametrize("verb", [*VERBS, "load_generator"])
def test_an_unknown_option_is_named(verb: str) -> None:
    with pytest.raises(OptionError, match="sede: there is no such option"):
        getattr(dino, verb)("sts-x2", sede=1)


@pytest.mark.parametrize("verb", ["report", "publish"])
def test_what_is_no_run_is_named(verb: str) -> None:
    with pytest.raises(RunError, match=r"3: is not a run; give a run's folder; run=FOLDER makes a stage keep one"):
        getattr(dino, verb)(3, **({"repo": "me/it"} if verb == "publish" else {}))


def test_every_option_has_its_help() -> None:
    for verb in VERBS:
        for name, _, field in flags_of(options_of(verb)):
            assert field.description, f"{verb}: {name}"
