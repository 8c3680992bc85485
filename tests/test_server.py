"""The engine that asks a server."""

from __future__ import annotations

import json
import shlex
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import chi2_contingency

from dino_pipeline import pocket
from dino_pipeline.decoding import completions
from dino_pipeline.decoding.decoder import Decoder
from dino_pipeline.decoding.engine import Request, Task, task_prompts
from dino_pipeline.decoding.server import Server
from dino_pipeline.errors import PYTHON, ModelError, OptionError
from dino_pipeline.examples import Example, iter_examples, read_examples
from dino_pipeline.options import Sampling
from dino_pipeline.progress import full_note
from dino_pipeline.publishing.rebuild import SERVER, rebuild_of
from dino_pipeline.run import Run
from dino_pipeline.spec import TaskSpec
from dino_pipeline.stage_records import ServerAbilities, ServerPrices, ServerUsage
from tests.commands import answer, files, invoke, refused, start
from tests.conftest import TOY_SPEC
from tests.serving import FAULTS, Faults, MadeUp, faulty, made_up, transformers_serve
from tests.test_spec import SPECS
from tests.toys import chat_tokenizer, tiny_model

pytestmark = pytest.mark.slow

INPUTS = ["A man plays a guitar.", "A dog runs in the garden.", "A child eats an apple.", "A nurse reads a letter."]
PLAIN = Sampling(top_k=5, decay=0)
PRICES, USED = ServerPrices(prompt=1.0, completion=2.0), ServerUsage(requests=100, prompt_tokens=1_000_000)


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    with transformers_serve(pocket.GENERATOR) as address:
        yield address


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    path = tmp_path / "inputs.txt"
    path.write_text("\n".join(INPUTS))
    return path


def call(address: str, inputs: Path, run: Path, *more: str | Path) -> list[str]:
    told: list[str | Path] = ["generate", SPECS / "sts-x2.json", "--engine", "openai", "--base-url", address]
    told += ["--model", pocket.GENERATOR, "--inputs", inputs, "--run", run, "--samples", "1", *more]
    return list(map(str, told))


def texts(run: Path) -> list[tuple[Any, ...]]:
    """All texts of a run, accepted or not: input, label, sample."""
    paths = [path for part in ("shards", "rejected") for path in (run / part).glob("*.jsonl")]
    found = [each for path in paths for each in iter_examples(path)]
    return sorted((each.input, each.label, each.sample) for each in found)


def first_shard(run: Path) -> list[Example]:
    return read_examples(run / "shards" / "00000.jsonl")


def record_of(run: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run / "run.json").read_text())["generate"]
    return record


def whole(samples: int) -> list[tuple[Any, ...]]:
    return sorted((at, label, sample) for at in range(4) for label in (1.0, 0.5, 0.0) for sample in range(samples))


def test_no_fault_of_a_server_loses_or_doubles_a_sample(served: str, inputs: Path, tmp_path: Path) -> None:
    faults = Faults()
    with faulty(served, faults) as address:
        told = call(address, inputs, tmp_path / "run", "--samples", "3", "--timeout", "2", "--concurrency", "6")
        faults.every = 3
        done = answer(*told)
    assert done.exit_code == 0, done.output
    assert set(faults.hit) == set(FAULTS)
    assert texts(tmp_path / "run") == whole(3)
    assert done.stderr.count("the server does not debias") == 1
    record = record_of(tmp_path / "run")
    assert record["options"]["engine"] == "openai"
    assert record["options"]["sampling"]["decay"] == 0
    assert record["server"]["dialect"] == "generation_config"
    assert record["usage"]["requests"] >= 36
    assert record["usage"]["completion_tokens"] > record["usage"]["requests"]


def test_a_run_that_was_killed_ends_as_a_whole_one(inputs: Path, tmp_path: Path) -> None:
    class Slow(MadeUp):
        def completion(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            time.sleep(0.05)
            return super().completion(body)

    more = ("--concurrency", "1", *[part for label in ("1", "0.5", "0") * 2 for part in ("--more", f"{label}=1")])
    with made_up(Slow()) as address:
        invoke(*call(address, inputs, tmp_path / "whole", *more))
        process = start(*call(address, inputs, tmp_path / "killed", *more), cwd=tmp_path)
        shards = tmp_path / "killed" / "shards"
        while len(list(shards.glob("*.jsonl"))) < 2:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = {path.name for path in shards.glob("*.jsonl")}
        assert len(before) < 7
        invoke(*call(address, inputs, tmp_path / "killed", *more))
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    used = [record_of(tmp_path / run)["usage"]["requests"] for run in ("whole", "killed")]
    assert used[1] >= used[0], "what a killed process used is counted, too"


@pytest.mark.parametrize("stored", [False, True])
def test_what_failed_before_any_text_binds_nobody(inputs: Path, tmp_path: Path, stored: bool) -> None:
    run, more = tmp_path / "run", ["--more", "0=1"]
    more += ["--storage", (tmp_path / "away").as_uri()] if stored else []
    with made_up(MadeUp(status=404)) as address:
        failed = refused(*call(address, inputs, run, *more, "--model", "wrong", "--samples", "2"))
    assert "knows no model wrong" in failed
    with made_up(MadeUp(top_k=False)) as address:
        assert "give --top-k 0" in refused(*call(address, inputs, run, *more))
        invoke(*call(address, inputs, run, *more, "--top-k", "0"))
        assert texts(run) == sorted([*whole(1), *((at, 0.0, 1) for at in range(4))])
        other = refused(*call(address, inputs, run, *more))
    assert "begun with other options: sampling.top_k was" in other, "once there are texts"


def test_what_a_failed_call_stored_is_nobodys(inputs: Path, tmp_path: Path) -> None:
    away, run = tmp_path / "away", tmp_path / "run"
    stored = ("--debias", "off", "--storage", away.as_uri())
    with made_up(MadeUp(status=404)) as address:
        refused(*call(address, inputs, run, *stored))
        assert (away / "inputs.jsonl").exists()
        refused(*call(address, inputs, run, "--samples", "2"))
    invoke("generate", SPECS / "sts-x1.json", "--run", run, "--samples", "1", *stored[2:])
    assert not (away / "inputs.jsonl").exists(), "this spec has no inputs"


def test_both_engines_draw_from_the_same_distribution(served: str, inputs: Path, tmp_path: Path) -> None:
    inputs.write_text(INPUTS[0])
    few = ("--samples", "80", "--max-new-tokens", "1", "--keep-unfinished", "--seed", "3")
    invoke(*call(served, inputs, tmp_path / "served", *few, "--concurrency", "4"))
    here = ("generate", SPECS / "sts-x2.json", "--inputs", inputs, "--run", tmp_path / "here", "--decay", "0")
    invoke(*here, *few)
    of_runs = (first_shard(tmp_path / run) for run in ("served", "here"))
    counts = [Counter((each.label, each.text_b) for each in shard) for shard in of_runs]
    kinds = [kind for kind in counts[0] | counts[1] if counts[0][kind] + counts[1][kind] >= 10]
    assert len(kinds) > 3
    assert chi2_contingency([[of[kind] for kind in kinds] for of in counts]).pvalue > 1e-4


def test_the_commands_of_a_card_are_those_that_a_server_takes(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with made_up(MadeUp(text=lambda seed, body: f"{INPUTS[seed % 4][:-1]} {seed % 50} times.")) as address:
        invoke(*call(address, inputs, tmp_path / "run", "--samples", "4"))
        invoke("filter", tmp_path / "run", "--near-duplicates", "0", "--dev-share", "0")
        script = rebuild_of(Run(tmp_path / "run").record()).script.replace(SERVER, address)
        monkeypatch.chdir(tmp_path / "run")
        for line in script.splitlines():
            invoke(*shlex.split(line)[1:])
    assert Path("../again/train.jsonl").read_bytes() == Path("train.jsonl").read_bytes()


def test_a_scorer_reads_prompts_in_its_own_template() -> None:
    spec = TaskSpec.model_validate(TOY_SPEC)
    plain, chat = (Decoder(tiny_model("llama"), chat_tokenizer(), chat=chat) for chat in (False, True))
    own, scored = (task_prompts(spec, 0, Task(0, "A dog.", "0", 0), reader.render) for reader in (plain, chat))
    assert own == [spec.prompt(label, "A dog.") for label in ("0", "1", "0.5")]
    assert scored == [chat.render(each, 'Then: "') for each in own]


def test_the_best_of_several_by_a_scorer_that_runs_here(inputs: Path, tmp_path: Path) -> None:
    scorer = ("--scorer", "pocket")
    with made_up(MadeUp(text=lambda seed, body: f"{INPUTS[seed % 4][:-1]} {seed % 5} times.")) as address:
        invoke(*call(address, inputs, tmp_path / "one", *scorer))
        invoke(*call(address, inputs, tmp_path / "four", *scorer, "--best-of", "4"))
    one, four = (first_shard(tmp_path / run) for run in ("one", "four"))
    assert all(each.logprob is not None for each in (*one, *four))
    assert [each.margin is None for each in one if each.label == 1.0] == [True] * 4
    better = [(b.margin or 0) - (a.margin or 0) for a, b in zip(one, four, strict=True) if a.label != 1.0]
    assert min(better) >= 0, "the first of the four is the one"
    assert sum(each > 0 for each in better) >= 3
    options = record_of(tmp_path / "four")["options"]
    assert (options["best_of"], options["scorer"]["name"]) == (4, "pocket")
    invoke("filter", tmp_path / "four", "--verify", "--dev-share", "0", "--near-duplicates", "0", "--no-balance")
    needs = "--best-of 4: needs a scorer, because a server reports no margins; give --scorer"
    assert needs in refused(*call(address, inputs, tmp_path / "none", "--best-of", "4", "--debias", "off"))


def ask(of: MadeUp, **options: Any) -> tuple[Server, list[Any], list[str]]:
    notes: list[str] = []
    with made_up(of) as address:
        found = Server("model", address, lambda *note: notes.append(full_note(note[0], note[1], PYTHON)), **options)
        requests = [Request((f"prompt {at}",), ("key", at)) for at in range(20)]
        done = sorted(found.sample(requests, PLAIN), key=lambda each: each.number)
    return found, done, notes


def test_what_a_server_can_do_is_found_out() -> None:
    found, done, notes = ask(MadeUp(logprobs=True), prices=PRICES, usage=USED)
    supported = {"dialect": "fields", "seeds": "hold", "logprobs": True, "tells_ends": False}
    assert found.abilities == ServerAbilities.model_validate(supported)
    assert [each.number for each in done] == list(range(20))
    assert {each.finish for each in done} == {"stop"}
    assert notes == ["the server does not tell the stop string from the model's end of text; both count as finished"]
    assert done[0].logprob == -1.0 and done[0].length == 3
    assert len({each.text for each in done}) > 15
    usage = found.facts()["usage"]
    assert usage.requests > 120 and usage.prompt_tokens == 1_000_000 + 10 * (usage.requests - 100)
    dollars = usage.prompt_tokens / 1e6 + 2 * usage.completion_tokens / 1e6
    assert found.facts()["cost"].dollars == pytest.approx(dollars)
    plain = MadeUp(refuses=("top_k", "generation_config", "logprobs"), keeps_stop=True)
    for unable in (plain, MadeUp(top_k=False)):
        with pytest.raises(OptionError, match="does not know top-k, or ignores it; give top_k=0"):
            ask(unable)
    with pytest.raises(OptionError, match="with different seeds are all the same"):
        ask(MadeUp(samples=False))
    found, done, notes = ask(MadeUp(seeds=False), concurrency=1)
    assert found.abilities and found.abilities.seeds == "do not hold"
    assert notes[0] == "the server's seeds do not hold, so another run writes other texts"


def test_top_k_is_looked_at_when_it_is_first_wanted() -> None:
    """Inputs are written first, and from all tokens."""
    with made_up(MadeUp(top_k=False)) as address:
        found = Server("model", address, print)
        assert len(list(found.sample([Request(("prompt",), ("key",))], Sampling(top_k=0, decay=0)))) == 1
        with pytest.raises(OptionError, match="does not know top-k"):
            list(found.sample([Request(("prompt",), ("key",))], PLAIN))


def test_a_prompt_that_a_server_refuses_costs_its_own_text_only(inputs: Path, tmp_path: Path) -> None:
    class Short(MadeUp):
        def completion(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            if len(body["prompt"]) > 1000:
                return 400, {"error": {"message": "maximum context length"}}
            return super().completion(body)

    inputs.write_text("A dog runs.\n" + "long " * 400 + "\nA bird sings.\n")
    with made_up(Short(text=lambda seed, body: f"The number {seed} is here.")) as address:
        done = answer(*call(address, inputs, tmp_path / "run"))
    assert done.exit_code == 0, done.output
    assert done.stderr.count("the server refuses a prompt, whose text is left out") == 1
    rejected = [json.loads(line) for line in (tmp_path / "run" / "rejected" / "00000.jsonl").read_text().splitlines()]
    assert [each["reason"] for each in rejected] == ["refused by the server"] * 3
    assert len(first_shard(tmp_path / "run")) == 6


def test_ctrl_c_waits_for_no_answer(inputs: Path, tmp_path: Path) -> None:
    class Hanging(MadeUp):
        def completion(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            if len(self.bodies) > 30:
                time.sleep(60)
            return super().completion(body)

    hanging = Hanging()
    with made_up(hanging) as address:
        process = start(*call(address, inputs, tmp_path / "run", "--samples", "9"), cwd=tmp_path)
        while len(hanging.bodies) <= 30:
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)  # the shard is to be finished
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130


def test_what_stopped_a_text_is_believed_where_a_server_tells_it() -> None:
    class Telling(MadeUp):
        def completion(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            status, answer = super().completion(body)
            answer["choices"][0]["stop_reason"] = '"' if body["seed"] % 2 else None
            return status, answer

    found, done, notes = ask(Telling())
    assert found.abilities and found.abilities.tells_ends and not notes
    assert {each.finish for each in done} == {"stop", "length"}


def test_texts_end_as_they_do_here() -> None:
    def text(seed: int, body: dict[str, Any]) -> str:
        return ["one", 'two" three', "four\nfive", " six "][seed % 4] + f" {seed}"

    _, done, _ = ask(MadeUp(text=text))
    found = {(each.text.split(" ")[0], each.finish) for each in done}
    assert found == {("one", "stop"), ("two", "stop"), ("four", "newline"), ("", "stop")}
    assert all(each.logprob is None and each.margin is None for each in done)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "does not let you in .*; set the environment variable OPENAI_API_KEY"),
        (404, "knows no model model"),
        (500, r"no answer in 2 attempts .*; the texts received so far are kept"),
    ],
)
def test_a_server_that_refuses(status: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completions, "TRIES", 2)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    of = MadeUp(status=status)
    with pytest.raises(ModelError, match=said) as error:
        ask(of)
    assert "sk-secret" not in str(error.value)
    assert of.keys[0] == "Bearer sk-secret"


def test_no_server_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completions, "TRIES", 2)
    nobody = Server("model", "http://127.0.0.1:9/v1", print)
    with pytest.raises(ModelError, match=r"127.0.0.1:9/v1: no answer in 2 attempts"):
        list(nobody.sample([Request(("prompt",), ("key",))], PLAIN))


def test_a_server_that_echoes_scores_texts() -> None:
    with made_up(MadeUp()) as address:
        found = Server("model", address, print).score([("prompt 1", "text"), ("prompt", "some text")], stop='"')
    expected = []
    for prompt, text in (("prompt 1", 'text"'), ("prompt", 'some text"')):
        both = prompt + text
        ends = [end for end in range(4, len(both) + 2, 2) if end > len(prompt)]
        expected.append(sum(-MadeUp.surprise((both + "x")[:end]) for end in ends) / len(ends))
    assert [each.logprob for each in found] == pytest.approx(expected)
    silent = MadeUp()
    silent.echo = lambda body: {"choices": [{"text": "x", "logprobs": None}]}  # type: ignore[method-assign]
    with made_up(silent) as address, pytest.raises(OptionError, match="echoes no log-probabilities"):
        Server("model", address, print).check_scores()


def test_a_server_tells_margins_of_its_own_texts(inputs: Path, tmp_path: Path) -> None:
    with made_up(MadeUp(text=lambda seed, body: f"The number {seed} is here.")) as address:
        invoke(*call(address, inputs, tmp_path / "run", "--scorer", "server", "--best-of", "3", "--prices", "1", "2"))
    found = first_shard(tmp_path / "run")
    assert [each.margin is None for each in found if each.label == 1.0] == [True] * 4
    assert not [each for each in found if each.label != 1.0 and each.margin is None]
    record = record_of(tmp_path / "run")
    assert record["cost"]["dollars_a_million_tokens"] == {"prompt": 1.0, "completion": 2.0}
    assert record["options"]["scorer"] == "server"
    assert "which ran on a server; generate with --scorer" in refused("filter", tmp_path / "run", "--verify")


def test_the_best_of_several_with_debiasing(inputs: Path, tmp_path: Path) -> None:
    here = ("generate", SPECS / "sts-x2.json", "--inputs", inputs, "--samples", "2")
    invoke(*here, "--run", tmp_path / "one")
    invoke(*here, "--run", tmp_path / "three", "--best-of", "3")
    one, three = (first_shard(tmp_path / run) for run in ("one", "three"))
    pairs = list(zip(one, three, strict=True))
    assert all(b.text_b == a.text_b for a, b in pairs if a.label == 1.0), "nothing to contrast with"
    assert all((b.margin or 0) >= (a.margin or 0) for a, b in pairs if a.label != 1.0)
    assert any((b.margin or 0) > (a.margin or 0) for a, b in pairs)
