"""Self-debiasing inside vLLM: a plug-in that writes the requests of one text, one for each prompt, in lock-step.

A server takes two of its classes: `SelfDebias` as a logits processor and `GroupScheduler` as its scheduler.

Each prompt of a text is a request of its own, whose ``extra_args`` say to which group it belongs (`GroupMember`). At
each step the plug-in draws one token for the group, as the decoder does, and forces it on all of the group's requests.
If a group is not whole, or its requests are not at the same step, all of them end with the end of text, which no
text holds, and whoever asked for the text asks again: the same random numbers give the same text.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig
from vllm import SamplingParams
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as LogitsProcessorV2

from dino_pipeline.decoding.engine import uniforms_of
from dino_pipeline.decoding.group_member import GroupMember
from dino_pipeline.decoding.next_token import next_tokens
from dino_pipeline.decoding.tokenization import banned_tokens
from dino_pipeline.options import Sampling


@lru_cache(maxsize=2**14)
def _draws(key: str, count: int) -> NDArray[np.float64]:
    return uniforms_of(bytes.fromhex(key), count)


class SpecialTokens(NamedTuple):
    """Tokens that no text holds."""

    banned: Tensor
    """Their ids."""
    torn: int
    """The one of them that marks torn groups: the end of text, which ends a request at once."""

    @classmethod
    def of(cls, vllm_config: Any, vocab: int) -> Self:
        """Return those of the model that vLLM runs.

        Args:
            vllm_config: vLLM's configuration.
            vocab: logits per position.

        Raises:
            ValueError: the model has no end of text.
        """
        config = vllm_config.model_config
        options = {"revision": config.tokenizer_revision, "trust_remote_code": config.trust_remote_code}
        tokenizer = AutoTokenizer.from_pretrained(config.tokenizer, **options)
        if tokenizer.eos_token_id is None:
            raise ValueError(f"{config.tokenizer}: has no end-of-text token, which would mark texts whose prompts part")
        try:
            ends = GenerationConfig.from_pretrained(config.model, revision=config.revision).eos_token_id
        except OSError:  # it has none
            ends = getattr(config.hf_text_config, "eos_token_id", None)
        return cls(banned_tokens(tokenizer, ends, vocab), tokenizer.eos_token_id)


Row = tuple[int, GroupMember, int]
"""A row of the logits, the request that it belongs to, and the number of tokens that the request has written."""


def force_tokens(logits: Tensor, rows: Iterable[Row], special: SpecialTokens) -> None:
    """Draw the next token of each group, and leave nothing else to its requests.

    Args:
        logits: ``(rows, vocab)`` in float32, changed in place.
        rows: those that belong to groups.
        special: tokens that no text holds.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[1].group, []).append(row)
    whole: dict[Sampling, list[tuple[list[int], float]]] = {}
    for members in groups.values():
        members.sort(key=lambda row: row[1].place)
        _, first, step = members[0]
        ordered = [number for number, _, _ in members]
        is_whole = [member.place for _, member, _ in members] == list(range(first.size))
        if not is_whole or any(at != step for _, _, at in members):
            logits[ordered] = -math.inf
            logits[ordered, special.torn] = 0.0
            continue
        draws = _draws(first.key, first.sampling.max_new_tokens)
        draw = draws[min(first.first_step + step, len(draws) - 1)]
        whole.setdefault(first.sampling, []).append((ordered, float(draw)))
    for sampling, texts in whole.items():
        _force_on_groups(logits, texts, special.banned, sampling)


def _force_on_groups(
    logits: Tensor, texts: Sequence[tuple[list[int], float]], banned: Tensor, sampling: Sampling
) -> None:
    """Force tokens on whole groups: for each, its rows with the own prompt's first, and its random number."""
    widest = max(len(rows) for rows, _ in texts)
    padded = [rows + rows[:1] * (widest - len(rows)) for rows, _ in texts]
    groups = torch.tensor(padded, device=logits.device)  # (texts, 1 + counters)
    uniform = torch.tensor([draw for _, draw in texts], dtype=torch.float64, device=logits.device)  # (texts,)
    used = torch.unique(groups)  # (rows,)
    logits[used[:, None], banned.to(logits.device)] = -math.inf
    tokens, _ = next_tokens(logits, groups, uniform, sampling)
    logits[used] = -math.inf
    logits[groups, tokens[:, None]] = 0.0


class SelfDebias(LogitsProcessor, LogitsProcessorV2):
    """The plug-in. Each of vLLM's two model runners makes it in its own way, and gets what fits it."""

    def __new__(cls, vllm_config: Any, *others: Any) -> Self:
        """Return the plug-in of the first runner, which gives two more arguments, or of the second, which gives one."""
        return object.__new__(_FirstRunner if len(others) == 2 else _SecondRunner)  # type: ignore[return-value]

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raise `ValueError`, which a server answers with, if what a request says of its group is malformed."""
        GroupMember.of(sampling_params)


class _FirstRunner(SelfDebias):
    """A row of the logits is a place in the batch, and requests move among places."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.vllm_config = vllm_config
        self.rows: dict[int, tuple[GroupMember, list[int]]] = {}
        self.special: SpecialTokens | None = None

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.rows, batch_update, _joined)

    def apply(self, logits: Tensor) -> Tensor:
        rows = [(row, member, len(written)) for row, (member, written) in self.rows.items() if row < len(logits)]
        if rows:
            if self.special is None:
                self.special = SpecialTokens.of(self.vllm_config, logits.shape[1])
            force_tokens(logits, rows, self.special)
        return logits


class _SecondRunner(SelfDebias):
    """A request keeps its slot, and the batch says which row is whose."""

    def __init__(self, vllm_config: Any, req_states: Any) -> None:
        self.states = req_states
        self.members: list[GroupMember | None] = [None] * req_states.max_num_reqs
        self.special = SpecialTokens.of(vllm_config, req_states.vocab_size)

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Do nothing: this is of the first runner's interface."""

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        self.members[req_idx] = GroupMember.of(sampling_params)
        return self.members[req_idx] is not None

    def apply(self, logits: Tensor, ctx: Any) -> Tensor:  # type: ignore[override]
        rows: list[Row] = []
        for row, slot in enumerate(ctx.idx_mapping_np.tolist()):
            step = int(ctx.seq_lens_upper_bound_np[row]) - int(self.states.prompt_len.np[slot])
            member = self.members[slot]
            if member is not None and step >= 0:  # below 0 a prompt is not read to its end, and nothing is sampled
                rows.append((row, member, step))
        force_tokens(logits, rows, self.special)
        return logits


def _joined(params: SamplingParams, prompt: list[int] | None, written: list[int]) -> Any:
    """Return what `SelfDebias` keeps of a request that joins the batch. vLLM appends to ``written``."""
    member = GroupMember.of(params)
    return None if member is None else (member, written)


def _names(group: Iterable[Any]) -> set[str]:
    return {request.request_id for request in group}


class GroupScheduler(Scheduler):
    """Admits the requests of a group in the same step, and with room for all of them to their end.

    Room means rows, the step's budget of tokens, and blocks of the cache. So no group is torn by a prompt that is cut
    in two, or by a request that has to make room.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.incomplete: dict[str, list[Any]] = {}
        self.held: deque[list[Any]] = deque()
        """Whole groups that wait for room."""

    def add_request(self, request: Any) -> None:
        """Take a request, and hold it until its group is whole and has room."""
        member = GroupMember.of(request.sampling_params)
        if member is None:
            super().add_request(request)
            return
        group = self.incomplete.setdefault(member.group, [])
        group.append(request)
        if len(group) == member.size:
            self.held.append(self.incomplete.pop(member.group))

    def finish_requests(self, request_ids: Any, finished_status: Any) -> Any:
        """Finish requests. Others of a group that waits go on without them, and so end at their first token."""
        if request_ids is None:
            self.held.clear()
            self.incomplete.clear()
        else:
            gone = {request_ids} if isinstance(request_ids, str) else set(request_ids)
            torn = [group for group in (*self.held, *self.incomplete.values()) if not gone.isdisjoint(_names(group))]
            self.held = deque(group for group in self.held if group not in torn)
            self.incomplete = {name: group for name, group in self.incomplete.items() if group not in torn}
            for request in itertools.chain.from_iterable(torn):
                if request.request_id not in gone:
                    super().add_request(request)
        return super().finish_requests(request_ids, finished_status)

    def get_request_counts(self) -> tuple[int, int]:
        running, waiting = super().get_request_counts()
        return running, waiting + sum(map(len, self.held))

    def schedule(self, *arguments: Any, **options: Any) -> Any:
        self._admit()
        return super().schedule(*arguments, **options)

    def _admit(self) -> None:
        """Hand on whole groups as long as there is room."""
        inside = [*self.running, *self.waiting]
        rows = self.max_num_running_reqs - len(inside)
        tokens = self.max_num_scheduled_tokens - len(self.running) - sum(each.num_tokens for each in self.waiting)
        blocks = self.kv_cache_config.num_blocks - 1 - sum(map(self._blocks, inside))
        while self.held:
            group = self.held[0]
            needs = (len(group), sum(each.num_tokens for each in group), sum(map(self._blocks, group)))
            fits = needs[0] <= rows and needs[1] <= tokens and needs[2] <= blocks
            if not fits and inside:
                return  # alone it is tried anyway: it would wait for ever
            rows, tokens, blocks = rows - needs[0], tokens - needs[1], blocks - needs[2]
            for request in self.held.popleft():
                super().add_request(request)
                inside.append(request)

    def _blocks(self, request: Any) -> int:
        """Return the blocks of the cache that a request takes at its end, at most: some layers keep a window alone."""
        blocks = -(-(request.num_prompt_tokens + request.max_tokens) // self.block_size)
        return blocks * len(self.kv_cache_config.kv_cache_groups)
