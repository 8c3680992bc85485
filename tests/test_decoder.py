from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from dino_pipeline.decoding import decoder as decoder_module
from dino_pipeline.decoding import prefill, tuning
from dino_pipeline.decoding.cache import CachedRows
from dino_pipeline.decoding.decoder import Decoder
from dino_pipeline.decoding.engine import Completion, Request
from dino_pipeline.decoding.prefill import Continuation, Prefiller, continuation
from dino_pipeline.decoding.self_check import row_defect
from dino_pipeline.decoding.tokenization import Prompt
from dino_pipeline.errors import ModelError
from dino_pipeline.options import Sampling
from tests.toys import CONFIGS, WINDOW, char_tokenizer, recurrent_model, tiny_model

TEXTS = ["A dog.", "Two men walk home.", "x", "The bird sings in the old tree.", "Rain falls, and falls."]
INSTRUCTIONS = ['Same: "{}"\nThen: "', 'Near: "{}"\nThen: "', 'Far: "{}"\nThen: "']
COUNTERS = [[], [0], [0, 1]]


def tensor(rows: list[list[int]], decoder: Decoder) -> torch.Tensor:
    return torch.tensor(rows, device=decoder.model.device)


def requests(decoder: Decoder, samples: int = 1) -> list[Request]:
    """Requests as the STS spec makes them: labels with none, one and two counter-prompts."""
    result = []
    for text in TEXTS:
        prompts = decoder.encode([decoder.render(each.format(text), 'Then: "') for each in INSTRUCTIONS])
        for label, counters in enumerate(COUNTERS):
            group = (prompts[label], *(prompts[counter] for counter in counters))
            result += [Request(group, ("key", text, label, sample)) for sample in range(samples)]
    return result


GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))
on_each_device = pytest.mark.parametrize("device", ["cpu", GPU])
on_each_architecture = pytest.mark.parametrize("architecture", CONFIGS)


def without_cache(decoder: Decoder) -> None:
    decoder.cached_length.proven, decoder.cached_length.wrong = 0, 1


@torch.inference_mode()
def naive_greedy(decoder: Decoder, wanted: Sequence[Request], steps: int) -> list[list[int]]:
    """One row at a time, no cache, no batch, the formula in float64."""
    return [naive_text(decoder, request, steps) for request in wanted]


def naive_text(decoder: Decoder, request: Request, steps: int) -> list[int]:
    rule = decoder.stop_rule('"', True)
    written: list[int] = []
    while len(written) < steps:
        probs = []
        for prompt in request.prompts:
            logits = decoder.model(tensor([[*prompt, *written]], decoder), use_cache=False).logits[0, -1].double()
            probs.append(logits.index_fill(-1, decoder.banned, -torch.inf).softmax(-1))
        own = probs[0].clone()
        for other in probs[1:]:
            own = own.minimum(probs[0] * (-100 * (other - probs[0]).clamp(min=0)).exp().clamp(min=0.01))
        written.append(int(own.argmax()))
        if rule.find(written):
            break
    return written


def greedy(decoder: Decoder, wanted: Sequence[Request], steps: int) -> list[list[int]]:
    """What the decoder writes for each request."""
    done = decoder.sample(wanted, Sampling(top_k=1, max_new_tokens=steps))
    return [list(each.tokens) for each in sorted(done, key=lambda each: each.number)]


@pytest.mark.slow
@on_each_device
@on_each_architecture
def test_greedy_decoding_is_token_identical_with_a_naive_loop(architecture: str, device: str) -> None:
    decoder = Decoder(tiny_model(architecture).to(device), char_tokenizer(), rows=7)
    assert decoder.cached_length.allows(60)
    wanted = requests(decoder)
    expected = naive_greedy(decoder, wanted, 25)
    assert greedy(decoder, wanted, 25) == expected
    assert len({tuple(tokens) for tokens in expected}) >= len(TEXTS)


@pytest.mark.slow
@on_each_architecture
@pytest.mark.parametrize("path", ["float64", "tuned"])
def test_greedy_decoding_is_token_identical_on_every_path(
    architecture: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(architecture)
    if path == "float64":
        model = model.double()
    decoder = Decoder(model, char_tokenizer(), rows=24)
    wanted = requests(decoder)
    expected = naive_greedy(decoder, wanted, 15)
    if path == "tuned":
        monkeypatch.setattr(tuning, "SMALLEST_PACKED", 1)
        tuning.tune(model, decoder.rows)
    assert greedy(decoder, wanted, 15) == expected


WIDE = Sampling(top_k=0, top_p=0.95, max_new_tokens=30)


def sampled(decoder: Decoder, wanted: list[Request]) -> dict[Any, str]:
    """The text of each request, of which every one is answered once."""
    result = list(decoder.sample(iter(wanted), WIDE))
    assert sorted(done.number for done in result) == list(range(len(wanted)))
    texts = {wanted[done.number].key: done.text for done in result}
    assert len(texts) == len(wanted)
    return texts


@pytest.mark.slow
@on_each_device
@on_each_architecture
def test_samples_do_not_depend_on_rows_or_order(architecture: str, device: str) -> None:
    model, tokenizer = tiny_model(architecture).to(device), char_tokenizer()
    decoders = [Decoder(model, tokenizer, rows=rows) for rows in (1, 16, 64)]
    wanted = requests(decoders[0], samples=2)
    first = sampled(decoders[2], wanted)
    assert sampled(decoders[0], wanted[2::5]) == {each.key: first[each.key] for each in wanted[2::5]}
    assert sampled(decoders[1], wanted[::-1]) == first
    assert sampled(decoders[2], wanted[1::3] + wanted[::3] + wanted[2::3]) == first
    assert len(set(first.values())) > len(wanted) // 2


@pytest.mark.slow
@on_each_architecture
def test_rows_without_a_cache_change_no_text(architecture: str) -> None:
    decoder = Decoder(tiny_model(architecture), char_tokenizer(), rows=16)
    wanted = requests(decoder)
    expected = sampled(decoder, wanted)
    without_cache(decoder)
    assert sampled(decoder, wanted[::5]) == {each.key: expected[each.key] for each in wanted[::5]}


def short_of_memory(model: Any, most_rows: int) -> None:
    """Let the model run out of memory on a batch of more rows."""
    forward = model.forward

    def greedy_for_memory(*args: Any, input_ids: Any, **kwargs: Any) -> Any:
        if len(input_ids) > most_rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(*args, input_ids=input_ids, **kwargs)

    model.forward = greedy_for_memory


@pytest.mark.slow
def test_out_of_memory_is_answered_by_fewer_rows_and_the_same_texts(caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = tiny_model("llama"), char_tokenizer()
    decoder = Decoder(model, tokenizer, rows=64)
    wanted = requests(decoder, samples=3)
    expected = sampled(decoder, wanted)
    short_of_memory(model, 20)
    assert sampled(decoder, wanted) == expected
    assert decoder.rows == 16
    assert "out of memory with 32 rows: going on with 16" in caplog.text
    assert sampled(decoder, wanted) == expected


def test_the_cache_is_given_back_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when Python happens to look for cycles: until then, half the rows would find no more memory than all."""
    decoder = Decoder(tiny_model("llama"), char_tokenizer(), rows=8)
    caches: list[weakref.ref[torch.Tensor]] = []

    def make(*args: Any) -> CachedRows:
        rows = CachedRows(*args)
        keep = rows.layers[0].lazy_initialization

        def initialize(*states: torch.Tensor) -> None:
            keep(*states)
            assert rows.layers[0].keys is not None
            caches.append(weakref.ref(rows.layers[0].keys))

        rows.layers[0].lazy_initialization = initialize  # type: ignore[method-assign, assignment]
        return rows

    monkeypatch.setattr(decoder_module, "CachedRows", make)
    gc.disable()
    try:
        sampled(decoder, requests(decoder))
        short_of_memory(decoder.model, 4)
        sampled(decoder, requests(decoder))
    finally:
        gc.enable()
    assert len(caches) >= 3
    assert not any(cache() is not None for cache in caches)


def states_of(one: Any, other: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of each layer, side by side."""
    for of_one, of_other in zip(one.layers, other.layers, strict=True):
        yield from zip(of_one, of_other, strict=True)


def test_attention_windows_hold_where_a_single_position_is_prefilled() -> None:
    """Prompts beyond the window that differ in nothing but their last two tokens."""
    model = tiny_model("mistral")
    start = tuple(7 + at % 20 for at in range(WINDOW + 10))
    prefiller = Prefiller(model)
    with torch.inference_mode():
        prefiller.compute([(*start, 8, 9)])
        shared = prefiller.compute([(*start, 11, 12)])
        alone = Prefiller(model).compute([(*start, 11, 12)])
    for one, two in states_of(shared, alone):
        assert torch.allclose(one, two, atol=1e-5)


def test_a_model_too_large_for_any_row_is_refused() -> None:
    decoder = Decoder(tiny_model("llama"), char_tokenizer(), rows=64)
    assert decoder.cached_length.allows(100)
    short_of_memory(decoder.model, 0)
    for name, message in (("", "LlamaForCausalLM: cpu"), ("models/mine", "models/mine: cpu")):
        decoder.model.config.name_or_path = name
        with pytest.raises(
            ModelError, match=f"{message} memory does not hold even 3 prompts in addition to the model; use d"
        ):
            list(decoder.sample(requests(decoder), WIDE))


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(tiny_model("llama"), char_tokenizer())
    assert decoder.cached_length.allows(60)
    monkeypatch.setattr(CachedRows, "step", lambda rows, longest: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        list(decoder.sample(requests(decoder), WIDE))


def test_what_prompts_share_goes_through_the_model_once() -> None:
    decoder = Decoder(tiny_model("mistral"), char_tokenizer())
    instruction = "Write a sentence that means the same: "
    groups = [decoder.encode([instruction + text for text in texts]) for texts in (("a", "bird"), ("bed", "catch"))]
    fed = []
    base = decoder.model.get_decoder()
    handle = base.register_forward_pre_hook(
        lambda m, a, kwargs: fed.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    prefiller = Prefiller(decoder.model)
    with torch.inference_mode():
        prefiller.compute(groups[0])
        shared = prefiller.compute(groups[1])
        alone = Prefiller(decoder.model).compute(groups[1])
        again = prefiller.compute(groups[0])
    handle.remove()
    start = len(instruction)
    assert fed == [(2, start + 3), (2, 4 - 0), (2, start + 4)]
    for result, expected in ((shared, alone), (again, prefiller.known)):
        assert expected is not None
        for one, two in states_of(result, expected):
            assert torch.allclose(one[0, :, : start - 1], two[0, :, : start - 1], atol=1e-5)
            assert torch.allclose(one[1], two[1], atol=1e-5)


def test_a_rule_for_where_texts_end_is_made_once_for_each_way() -> None:
    decoder = Decoder(tiny_model("llama"), char_tokenizer())
    ways = [('"', True), ('"', False), (".", True)]
    rules = [decoder.stop_rule(*way) for way in ways]
    assert len({id(rule) for rule in rules}) == len(ways)
    assert all(decoder.stop_rule(*way) is rule for way, rule in zip(ways, rules, strict=True))


def test_what_follows_a_prompt_leaves_the_model_a_token_to_read_and_one_to_tell() -> None:
    assert continuation((1, 2, 3), (1, 2, 3, 4)) == Continuation((1, 2, 3), (4,))
    assert continuation((1, 2, 3), (1, 2, 9)) == Continuation((1, 2), (9,)), "the prompt's end is in the text's token"
    assert continuation((1, 2, 3), (1, 2, 3)) == Continuation((1, 2), (3,))
    assert continuation((5,), (7, 8, 9)) == Continuation((7,), (8, 9))


@torch.inference_mode()
def plain_logprob(decoder: Decoder, prompt: Prompt, tokens: Sequence[int]) -> float:
    """The mean log-probability of tokens after a prompt, by a plain forward pass."""
    logits = decoder.model(tensor([[*prompt, *tokens]], decoder)).logits[0, len(prompt) - 1 : -1]
    log_probs = logits.index_fill(-1, decoder.banned, -torch.inf).log_softmax(-1).cpu()
    return float(log_probs.gather(1, torch.tensor(tokens)[:, None]).mean())


@on_each_device
@on_each_architecture
def test_scores_are_what_a_plain_forward_says(architecture: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(tiny_model(architecture).to(device), char_tokenizer())
    prompts = [instruction.format(text) for text in TEXTS for instruction in INSTRUCTIONS]
    pairs = [(prompt, text) for text in ["No.", "A bird, a bird.", "", "x" * 20] for prompt in prompts]
    expected = []
    for prompt, text in pairs:
        tokens = decoder.encode([prompt + text + '"'])[0]
        start = len(decoder.encode([prompt])[0])
        expected.append(plain_logprob(decoder, tokens[:start], tokens[start:]))
    assert [each.logprob for each in decoder.score(pairs)] == pytest.approx(expected, abs=1e-4)
    monkeypatch.setattr(prefill, "LOGITS", 60 * decoder.vocab)
    assert [each.logprob for each in decoder.score(pairs[::-1])] == pytest.approx(expected[::-1], abs=1e-4)
    without_cache(decoder)
    assert [each.logprob for each in decoder.score(pairs)] == pytest.approx(expected, abs=1e-4)


def test_out_of_memory_is_answered_by_scoring_halves_with_the_same_scores() -> None:
    decoder = Decoder(tiny_model("llama"), char_tokenizer())
    pairs = [(INSTRUCTIONS[0].format(text), other) for text in TEXTS for other in TEXTS]
    expected = [each.logprob for each in decoder.score(pairs)]
    short_of_memory(decoder.model, 4)
    assert [each.logprob for each in decoder.score(pairs)] == pytest.approx(expected, abs=1e-4)
    short_of_memory(decoder.model, 0)
    with pytest.raises(torch.OutOfMemoryError):
        decoder.score(pairs)


@pytest.mark.slow
@pytest.mark.parametrize("plain", [False, True])
def test_requests_may_come_one_by_one_and_grow(plain: bool) -> None:
    """Longer prompts and wider groups than those seen first: rows are made longer, and more."""
    decoder = Decoder(tiny_model("llama"), char_tokenizer(), rows=2)
    if plain:
        without_cache(decoder)
    texts = ["x", "y", "z", "The bird sings in the old tree, " * 3]
    prompts = [decoder.encode([instruction.format(text) for instruction in INSTRUCTIONS]) for text in texts]
    wanted = [Request(tuple(group[:width]), ("k", n, width)) for n, group in enumerate(prompts) for width in (1, 2)]
    wanted += [Request(tuple(group), ("wide", n)) for n, group in enumerate(prompts)]
    assert sampled(decoder, wanted) == sampled(Decoder(decoder.model, char_tokenizer(), rows=64), wanted)


def finished(decoder: Decoder, stop_at_newline: bool = True) -> list[Completion]:
    return list(decoder.sample(requests(decoder, samples=20), WIDE, stop='"', stop_at_newline=stop_at_newline))


def test_texts_end_at_the_quote_at_a_newline_if_asked_or_at_the_longest_length() -> None:
    decoder = Decoder(tiny_model("gpt2"), char_tokenizer())
    assert list(decoder.sample([], WIDE)) == []
    result = finished(decoder)
    for done in result:
        assert '"' not in done.text
        assert "\n" not in done.text
        assert done.length == len(done.tokens)
        assert (len(done.tokens) == 30) or done.finish != "length"
    assert {done.finish for done in result} == {"stop", "newline", "length"}
    result = finished(decoder, stop_at_newline=False)
    assert any("\n" in done.text for done in result)
    assert {done.finish for done in result} == {"stop", "length"}


@pytest.mark.slow
def test_the_end_of_text_token_is_never_written() -> None:
    model = tiny_model("llama")
    own = next(token for done in finished(Decoder(model, char_tokenizer())) for token in done.tokens)
    model.generation_config.eos_token_id = own  # not the tokenizer's
    decoder = Decoder(model, char_tokenizer())
    special = {own, *char_tokenizer().all_special_ids, *range(len(char_tokenizer()), decoder.vocab)}
    assert special == {*decoder.banned.tolist()}
    assert not special & {token for done in finished(decoder) for token in done.tokens}


def test_logprob_and_margin_are_what_a_plain_forward_says() -> None:
    decoder = Decoder(tiny_model("qwen3"), char_tokenizer(), rows=9)
    wanted = requests(decoder)
    for done in decoder.sample(wanted, WIDE):
        means = [plain_logprob(decoder, prompt, done.tokens) for prompt in wanted[done.number].prompts]
        assert done.logprob == pytest.approx(means[0], abs=1e-4)
        if len(means) == 1:
            assert done.margin is None
        else:
            assert done.margin == pytest.approx(means[0] - max(means[1:]), abs=1e-4)


def test_a_model_that_cached_rows_cannot_serve_runs_plainly_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        decoder = Decoder(recurrent_model(), char_tokenizer(), rows=4)
    assert not decoder.cached_length.allows(1)
    slower = "(its forward takes no position_ids): rows are computed one by one, slower"
    assert caplog.messages == [f"MambaForCausalLM cannot run in cached rows {slower}"]
    wanted = requests(decoder)[:6]
    assert greedy(decoder, wanted, 6) == naive_greedy(decoder, wanted, 6)


@on_each_device
def test_only_a_gpu_is_kept_busy_across_shards(device: str) -> None:
    decoder = Decoder(tiny_model("llama").to(device), char_tokenizer())
    assert decoder.refill_rows == (device == "cuda")


def test_the_self_check_finds_ignored_positions_and_logits_that_are_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt2")
    forward, step = model.forward, CachedRows.step

    def careless(*args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        return forward(*args, position_ids=None, **kwargs)

    assert row_defect(model) is None
    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", careless)
        assert "logits differ" in (row_defect(model) or "")
    monkeypatch.setattr(CachedRows, "step", lambda rows, longest: step(rows, longest) * torch.nan)
    assert "logits differ" in (row_defect(model) or "")


def test_an_end_of_text_token_in_an_input_is_only_text() -> None:
    decoder = Decoder(tiny_model("gpt2"), char_tokenizer())
    assert decoder.tokenizer.eos_token_id not in decoder.encode(["a <end> b"])[0]


def test_bfloat16_passes_the_self_check_and_keeps_probabilities_in_float32() -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    assert row_defect(model) is None
    decoder = Decoder(model, char_tokenizer())
    assert all(torch.isfinite(torch.tensor(done.logprob)) for done in decoder.sample(requests(decoder), WIDE))


def test_a_prompt_must_leave_room_in_the_context() -> None:
    decoder = Decoder(tiny_model("gpt2"), char_tokenizer())
    assert decoder.fits([(1,) * 216], 40)
    assert not decoder.fits([(1,), (1,) * 217], 40)
