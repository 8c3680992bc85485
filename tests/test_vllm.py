"""The engine vLLM beside the decoder: the same texts, whatever tears its groups. Skipped without vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dino_pipeline.decoding.decoder import Decoder
from dino_pipeline.decoding.engine import key_digest
from dino_pipeline.decoding.group_member import GroupMember
from dino_pipeline.errors import ModelError, OptionError
from dino_pipeline.options import Sampling
from dino_pipeline.spec import TaskSpec
from dino_pipeline.spec_file import load_spec

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-vllm` runs these in an environment of their own")

from dino_pipeline.decoding.vllm_engine import VllmEngine
from dino_pipeline.decoding.vllm_plugin import GroupScheduler, SelfDebias, SpecialTokens, force_tokens
from tests.vllm_texts import CONTRASTS, INPUTS, assert_same, decoder, requests, vllm, write


@pytest.fixture(scope="module")
def pocket() -> Iterator[tuple[Decoder, VllmEngine]]:
    with vllm("pocket") as engine:
        yield decoder("pocket"), engine


SAMPLINGS = [
    Sampling(),
    Sampling(top_k=0, top_p=0.0, decay=10.0),
    Sampling(top_k=0, top_p=0.8, decay=0.0),
    Sampling(top_k=20, top_p=1.0, decay=30.0, floor=0.0, max_new_tokens=12),
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("spec", ["sts-x2", "sts-few-shot", CONTRASTS], ids=["sts-x2", "sts-few-shot", "contrasts"])
def test_texts_are_those_of_the_decoder(
    pocket: tuple[Decoder, VllmEngine], spec: str | TaskSpec, sampling: Sampling
) -> None:
    task = load_spec(spec) if isinstance(spec, str) else spec
    torn = pocket[1].torn
    wanted = [one for one in requests(pocket[0], task, 4) if pocket[0].fits(one.prompts, 40)]
    assert_same(*pocket, wanted, sampling)
    assert pocket[1].torn == torn


def test_margins_are_those_of_the_decoder(pocket: tuple[Decoder, VllmEngine]) -> None:
    wanted = requests(pocket[0], load_spec("sts-x2"), 2)
    for ours, theirs in zip(*(write(engine, wanted, Sampling()) for engine in pocket), strict=True):
        if ours.tokens == theirs.tokens:
            assert theirs.logprob == pytest.approx(ours.logprob, abs=1e-3)
            assert theirs.margin == (None if ours.margin is None else pytest.approx(ours.margin, abs=1e-3))


def test_stop_strings_of_several_tokens_and_newlines(pocket: tuple[Decoder, VllmEngine]) -> None:
    wanted = requests(pocket[0], load_spec("sts-x2"), 2)
    assert {text.finish for text in assert_same(*pocket, wanted, stop='."')} >= {"stop"}
    assert_same(*pocket, wanted, stop=" a ", stop_at_newline=False)


def test_scores_are_those_of_the_decoder(pocket: tuple[Decoder, VllmEngine]) -> None:
    pairs = [(f'Sentence 1: "{text}"\nSentence 2: "', other) for text in INPUTS for other in INPUTS[:2]]
    for ours, theirs in zip(*(engine.score(pairs) for engine in pocket), strict=True):
        assert theirs == (pytest.approx(ours.logprob, abs=1e-3), ours.tokens)


def test_the_token_that_debiasing_replaced(pocket: tuple[Decoder, VllmEngine]) -> None:
    for request in requests(pocket[0], load_spec("sts-x2"), 1)[:6]:
        text = write(pocket[0], [request], Sampling())[0]
        ours, theirs = (engine.undebiased(request, text.tokens, Sampling()) for engine in pocket)
        assert ours == theirs


def test_a_torn_group_is_written_again(
    pocket: tuple[Decoder, VllmEngine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A scheduler that hands on the requests of some groups one step after the other."""
    late: list[Any] = []
    admit = GroupScheduler._admit
    torn = pocket[1].torn

    def careless(self: Any) -> None:
        while late:
            super(GroupScheduler, self).add_request(late.pop())
        for group in self.held:
            member = GroupMember.of(group[0].sampling_params)
            if member is not None and int(member.group) % 5 == 0 and len(group) > 1:
                late.append(group.pop())
        admit(self)

    monkeypatch.setattr(GroupScheduler, "_admit", careless)
    assert_same(*pocket, requests(pocket[0], load_spec("sts-x2"), 4))
    assert pocket[1].torn > torn
    assert f"{pocket[1].torn - torn} texts were asked for again" in caplog.text
    assert pocket[1].facts()["torn"] == pocket[1].torn


def test_groups_that_never_hold_together_are_an_error(
    pocket: tuple[Decoder, VllmEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VllmEngine, "_is_torn", lambda *_: True)
    with pytest.raises(ModelError, match="does not keep the 2 prompts of a text in step"):
        write(pocket[1], requests(pocket[0], load_spec("sts-x2"), 1)[1:2], Sampling())
    monkeypatch.undo()
    assert not pocket[1].engine.has_unfinished_requests()
    assert write(pocket[1], requests(pocket[0], load_spec("sts-x2"), 1)[:1], Sampling())


def test_one_thing_at_a_time(pocket: tuple[Decoder, VllmEngine]) -> None:
    texts = pocket[1].sample(requests(pocket[0], load_spec("sts-x2"), 2), Sampling())
    next(texts)
    with pytest.raises(ModelError, match="does one thing at a time"):
        pocket[1].score([('Sentence: "', "A man sleeps.")])
    assert len(list(texts)) == len(INPUTS) * 3 * 2 - 1
    with pytest.raises(OptionError, match="leaves no room to score a text"):
        pocket[1].score([('Sentence: "', 300 * "A man sleeps. ")])


def test_a_writer_that_is_left_early_leaves_nothing_behind(pocket: tuple[Decoder, VllmEngine]) -> None:
    texts = pocket[1].sample(requests(pocket[0], load_spec("sts-x2"), 4), Sampling())
    next(texts)
    texts.close()  # type: ignore[attr-defined]
    assert not pocket[1].engine.has_unfinished_requests()


def members(count: int, key: int, sampling: Sampling) -> Iterator[GroupMember]:
    for place in range(count):
        digest = key_digest(("text", key), 16).hex()
        yield GroupMember(group=str(key), place=place, size=count, key=digest, sampling=sampling)


def test_both_interfaces_force_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Model Runner V2 needs a GPU; what it hands to the plug-in is imitated here."""
    torch.manual_seed(0)
    special = SpecialTokens(torch.tensor([0, 1]), 1)
    monkeypatch.setattr(SpecialTokens, "of", lambda *_: special)
    logits = torch.randn(6, 50)
    rows = [*members(3, 1, Sampling()), None, *members(2, 2, Sampling(decay=5.0, top_k=0))]
    expected = logits.clone()
    force_tokens(expected, [(at, row, 7) for at, row in enumerate(rows) if row], special)
    for group in ([0, 1, 2], [4, 5]):
        chosen = expected[group].isfinite().nonzero()[:, 1]
        assert len(chosen) == len(group) and len(set(chosen.tolist())) == 1 and chosen[0] > 1
    assert torch.equal(expected[3], logits[3])

    slots = [5, 3, 4, 0, 2, 1]
    prompt_len = np.arange(10, 16)
    states = SimpleNamespace(max_num_reqs=6, vocab_size=50, device="cpu", prompt_len=SimpleNamespace(np=prompt_len))
    plugin = SelfDebias(None, states)
    for slot, row in zip(slots, rows, strict=True):
        params = SimpleNamespace(extra_args=row.argument() if row else None)
        assert plugin.add_request(slot, params) == (row is not None)
    lengths = np.array([prompt_len[slot] + 7 for slot in slots])
    context = SimpleNamespace(idx_mapping_np=np.array(slots), seq_lens_upper_bound_np=lengths)
    assert torch.equal(plugin.apply(logits.clone(), context), expected)
    context.seq_lens_upper_bound_np = lengths + np.array([0, 1, 0, 0, 0, 0])  # one request is a step ahead
    torn = plugin.apply(logits.clone(), context)
    assert torn[:3].isfinite().nonzero()[:, 1].tolist() == [1, 1, 1]
    assert torch.equal(torn[3:], expected[3:])


def test_malformed_arguments_are_refused_before_they_are_admitted() -> None:
    for argument in (
        "{}",
        "nonsense",
        next(members(1, 1, Sampling())).model_dump_json().replace('"top_k":5', '"top_k":-5'),
    ):
        with pytest.raises(ValueError, match="GroupMember"):
            SelfDebias.validate_params(SimpleNamespace(extra_args={"dino": argument}))
