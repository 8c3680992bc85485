"""A server that debiases: by the plug-in of vLLM, here a toy that behaves like it, and by rejection."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dino_pipeline.decoding import completions
from dino_pipeline.decoding.engine import Completion, Request, key_digest
from dino_pipeline.decoding.rejection import Proposal, write_by_rejection
from dino_pipeline.decoding.server import Server
from dino_pipeline.errors import PYTHON, ModelError
from dino_pipeline.options import Sampling
from dino_pipeline.progress import full_note
from dino_pipeline.publishing.rebuild import _generate_values
from dino_pipeline.stage_records import ServerDebiasing
from tests.commands import answer, files, invoke, refused
from tests.records import generate_record
from tests.serving import END, MadeUp, ToyVllm, made_up
from tests.test_server import call, first_shard, inputs, record_of

__all__ = ["inputs"]  # a fixture

pytestmark = pytest.mark.slow

SAMPLING = Sampling(decay=10.0, top_p=0.95)
WIDE = Sampling(top_k=0, top_p=0, decay=10.0, max_new_tokens=12)
REQUESTS = [Request(tuple(f"prompt {at} {place}" for place in range(1 + at % 3)), ("key", at)) for at in range(30)]
PLUGIN = "dino_pipeline.decoding.vllm_plugin"


def write(toy: MadeUp, debias: Any, sampling: Sampling, **more: Any) -> tuple[list[Completion], Server, list[str]]:
    """Write the texts of all requests."""
    notes: list[str] = []
    with made_up(toy) as address:
        engine = Server("toy", address, lambda *note: notes.append(full_note(note[0], note[1], PYTHON)), concurrency=5)
        engine.debias = debias
        texts = sorted(engine.sample(REQUESTS, sampling, **more), key=lambda each: each.number)
    return texts, engine, notes


def means(request: Request, tokens: tuple[int, ...]) -> list[float]:
    """Mean log-probability of a text after each prompt."""
    found = []
    for prompt in map(ToyVllm.encode, request.prompts):
        logs = [ToyVllm.log_probs([*prompt, *tokens[:at]])[token] for at, token in enumerate(tokens)]
        found.append(float(np.mean(logs)))
    return found


def check(texts: list[Completion], stop: str = '"') -> None:
    """Texts are what their tokens say, and so are log-probabilities and margins."""
    ends = {"stop": stop, "newline": "\n", "length": ""}
    for text in texts:
        request = REQUESTS[text.number]
        assert ToyVllm.decode(text.tokens) == text.text + ends[text.finish]
        own, *others = means(request, text.tokens)
        assert text.logprob == pytest.approx(own)
        assert (text.margin is None) if not others else (text.margin == pytest.approx(own - max(others)))
        assert text.length == len(text.tokens) and END not in text.tokens
    assert {text.finish for text in texts} >= {"stop", "length" if stop == "##" else "newline"}


def test_the_plug_in_writes_the_texts() -> None:
    texts, engine, notes = write(toy := ToyVllm(), "plugin", SAMPLING)
    check(texts)
    for request, text in zip(REQUESTS, texts, strict=True):
        prompts = [*map(ToyVllm.encode, request.prompts)]
        assert list(text.tokens) == toy.debiased(prompts, key_digest(request.key, 16), SAMPLING, ['"', "\n"])
    assert not notes and engine.facts()["debiasing"] == ServerDebiasing(texts=30)
    assert engine.facts()["usage"].requests == sum(len(each.prompts) for each in REQUESTS) == len(toy.bodies)


def test_groups_that_are_torn_or_lost_are_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completions, "FIRST_PAUSE", 0.01)
    whole, _, _ = write(ToyVllm(), "plugin", SAMPLING)
    texts, engine, notes = write(ToyVllm(tears=lambda number: number % 3 == 0), "plugin", SAMPLING)
    assert texts == whole
    assert 5 < engine.debiasing.torn < 30
    assert notes == [
        f"the server tore the prompts of texts apart {engine.debiasing.torn} times; they were asked for again; start "
        f"vLLM with the scheduler class {PLUGIN}.GroupScheduler"
    ]
    started = time.monotonic()
    texts, engine, notes = write(ToyVllm(fails=lambda number: number % 7 == 0), "plugin", SAMPLING)
    assert texts == whole and not engine.debiasing.torn
    assert time.monotonic() - started < 15, "nobody waits for a request that has failed"
    with pytest.raises(
        ModelError, match=r"did not write the \d prompts of a text in one step, in 20 tries; start vLLM with"
    ):
        write(ToyVllm(tears=lambda number: True), "plugin", SAMPLING)


def test_a_probe_finds_the_plug_in() -> None:
    def found(toy: MadeUp) -> bool:
        with made_up(toy) as address:
            return Server("toy", address, print).has_plugin()

    assert found(ToyVllm()) and found(ToyVllm(tears=lambda number: number < 3))
    assert not found(ToyVllm(plugin=False))
    assert not found(MadeUp()) and not found(MadeUp(refuses=("vllm_xargs",)))
    with pytest.raises(
        ModelError, match=r"ends all of 20 short texts at once; start vLLM with .* or give debias='off'"
    ):
        found(ToyVllm(tears=lambda number: True))


def test_a_run_goes_on_as_it_began(inputs: Path, tmp_path: Path) -> None:
    with made_up(ToyVllm()) as address:
        done = answer(*call(address, inputs, tmp_path / "run", "--best-of", "2"))
        assert done.exit_code == 0 and "does not debias" not in done.stderr, done.output
        assert "texts are up to date" in invoke(*call(address, inputs, tmp_path / "run", "--best-of", "2"))
        invoke(*call(address, inputs, tmp_path / "again", "--best-of", "2", "--concurrency", "1"))
        other = refused(*call(address, inputs, tmp_path / "run", "--best-of", "2", "--debias", "rejection"))
        assert 'debias was "plugin", now "rejection"' in other
    assert files(tmp_path / "run") == files(tmp_path / "again")
    record = record_of(tmp_path / "run")
    assert record["options"]["debias"] == "plugin" and record["options"]["sampling"]["decay"] == 100
    assert record["debiasing"]["texts"] == 4 * (1 + 2 + 2)
    assert not [each for each in first_shard(tmp_path / "run") if (each.margin is None) != (each.label == 1.0)]
    with made_up(ToyVllm(plugin=False)) as address:
        more = ("--best-of", "2", "--more", "0=1")
        gone = refused(*call(address, inputs, tmp_path / "run", *more))
        assert "lacks the plug-in, which debiased the texts that the run has; start vLLM with the logits proc" in gone
        plain = answer(*call(address, inputs, tmp_path / "plain"))
        assert plain.exit_code == 0 and plain.stderr.count("the server does not debias") == 1, plain.output
        assert (
            f"start vLLM with the logits processor {PLUGIN}:SelfDebias, or give --debias rejection; --b" in plain.stderr
        )
        undebiased = "--decay: the server's texts are not debiased; leave it out, or give --debias rejection"
        assert undebiased in refused(*call(address, inputs, tmp_path / "none", "--decay", "3"))
    with made_up(ToyVllm()) as address:
        invoke(*call(address, inputs, tmp_path / "run", *more))
        invoke(*call(address, inputs, tmp_path / "plain", "--more", "0=1"))
        changed = 'debias was "plugin", now null'
        assert changed in refused(
            *call(address, inputs, tmp_path / "run", *more, "--debias", "off", "--scorer", "server")
        )
    plain_record = record_of(tmp_path / "plain")
    assert plain_record["options"].get("debias") is None and plain_record["options"]["sampling"]["decay"] == 0
    assert plain_record["debiasing"] is None


def test_rejection_through_a_server_is_that_of_the_model_itself() -> None:
    class Itself:
        def __init__(self, request: Request) -> None:
            self.prompts = [*map(ToyVllm.encode, request.prompts)]

        def propose(self, tokens: Any, seed: int) -> Proposal:
            body = {"max_tokens": WIDE.max_new_tokens - len(tokens), "stop": ['"', "\n"], "seed": seed}
            found = toy.sampled([*self.prompts[0], *tokens], body)
            ended = found[-1] == END
            return Proposal(tuple(found[:-1] if ended else found), not ended)

        def log_probs(self, tokens: Any, start: int) -> Any:
            rows = []
            for at in range(start, len(tokens)):
                rows.append([toy.log_probs([*prompt, *tokens[:at]])[tokens[at]] for prompt in self.prompts])
            return np.array(rows).reshape(-1, len(self.prompts))

    texts, engine, notes = write(toy := ToyVllm(plugin=False), "rejection", WIDE)
    rounds = 0
    for request, text in zip(REQUESTS, texts, strict=True):
        if len(request.prompts) > 1:
            own = write_by_rejection(Itself(request), request.key, WIDE)
            assert own.tokens == text.tokens
            rounds += own.rounds
    check([text for text in texts if text.margin is not None])
    assert engine.debiasing == ServerDebiasing(texts=20, rounds=rounds)
    assert rounds > 40 and notes == [f"debiasing by rejection took {rounds / 20:.1f} rounds a text"]


def test_a_stop_string_that_two_proposals_share_is_found() -> None:
    sampling = WIDE.model_copy(update={"max_new_tokens": 40})
    texts, _, _ = write(ToyVllm(plugin=False), "rejection", sampling, stop="##", stop_at_newline=False)
    check([text for text in texts if text.margin is not None], stop="##")


def test_a_run_by_rejection(inputs: Path, tmp_path: Path) -> None:
    with made_up(toy := ToyVllm(plugin=False)) as address:
        told = ("--debias", "rejection", "--decay", "10", "--top-k", "0", "--max-new-tokens", "20", "--keep-unfinished")
        said = answer(*call(address, inputs, tmp_path / "run", *told, "--best-of", "2"))
        assert said.exit_code == 0 and "rounds a text" in said.stderr, said.output
        (tmp_path / "run" / "shards" / "00000.jsonl").rename(tmp_path / "before.jsonl")
        invoke(*call(address, inputs, tmp_path / "run", *told, "--best-of", "2", "--concurrency", "1"))
        bodies = len(toy.bodies)
        invoke(*call(address, inputs, tmp_path / "run", *told[2:], "--best-of", "2"))
        assert len(toy.bodies) == bodies, "a run goes on as it began"
    assert (tmp_path / "run" / "shards" / "00000.jsonl").read_bytes() == (tmp_path / "before.jsonl").read_bytes()
    record = record_of(tmp_path / "run")
    assert record["options"]["debias"] == "rejection" and record["options"]["sampling"]["decay"] == 10
    assert record["debiasing"]["texts"] == 2 * 16 and record["debiasing"]["rounds"] > 40
    assert not [each for each in first_shard(tmp_path / "run") if each.margin is None and each.label != 1.0]
    with made_up(MadeUp(refuses=("return_token_ids",))) as address:
        unable = refused(*call(address, inputs, tmp_path / "other", *told[:2]))
    assert "--debias rejection: http://127.0.0.1" in unable and "does not take and report the ids of tokens" in unable


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--debias", "rejection", "--decay", "0"], "--debias rejection: rejects nothing with a decay of 0"),
        (["--debias", "off", "--floor", "0.5"], "--floor: the server's texts are not debiased; leave it out, or give"),
        (["--debias", "off", "--best-of", "2"], "--best-of 2: needs a scorer, because a server reports no margins"),
        (["--debias", "plugin"], "--debias plugin: must be one of auto, rejection, off"),
        (["--debias", "off", "--engine", "transformers"], "--base-url: belongs to the engine openai"),
    ],
)
def test_what_has_no_meaning_is_refused(inputs: Path, tmp_path: Path, options: list[str], said: str) -> None:
    assert said in refused(*call("http://127.0.0.1:9/v1", inputs, tmp_path / "run", *options))


@pytest.mark.parametrize(("debias", "option"), [("plugin", "auto"), ("rejection", "rejection"), (None, "off")])
def test_the_commands_of_a_card_debias_as_the_run_did(debias: Any, option: str) -> None:
    values = _generate_values(generate_record({"engine": "openai", "debias": debias}))
    assert values["debias"] == option and (values["decay"] is None) == (debias is None)
