"""What a server supports, found out by a few short texts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import get_args

from dino_pipeline.decoding.completions import CompletionsClient, RequestRefusedError, request_body
from dino_pipeline.decoding.server_debias import PROBES
from dino_pipeline.errors import OptionError
from dino_pipeline.options import Sampling
from dino_pipeline.processes import in_threads
from dino_pipeline.stage_records import Dialect, Seeds, ServerAbilities

TRIALS = 4
"""Texts that show whether a server samples, and whether its seeds hold."""
LEAST_ECHO = 12
"""Characters of the prompt that a text repeats if it begins with the prompt, cut at a stop string or not."""


def probe(
    client: CompletionsClient, stop: str, concurrency: int, note: Callable[[str, str], object]
) -> ServerAbilities:
    """Find out what a server supports.

    Args:
        client: asks the server.
        stop: the string that will end texts.
        concurrency: texts that will be asked for at the same time.
        note: takes what the user should know, a message and a remedy, as `Reporter.note`.

    Raises:
        OptionError: it does not sample, or its texts begin with their prompts.
        NoAnswerError: it does not answer.
    """
    dialect, logprobs, reports_stop = _dialect(client, stop)
    wide = Sampling(top_k=0, top_p=0, max_new_tokens=12)
    first = _trial(client, wide, stop, dialect)
    if len({*first}) == 1:
        raise OptionError(
            f"{client.base_url}: {TRIALS} texts with different seeds are all the same, so the server does not sample",
            "start it so that it does",
        )
    seeds: Seeds = "do not hold"
    if _trial(client, wide, stop, dialect) == first:
        # some servers share one generator among all requests that run
        alone = concurrency == 1 or _trial(client, wide, stop, dialect, TRIALS) == first
        seeds = "hold" if alone else "hold one at a time"
    if seeds != "hold":
        remedy = "{concurrency=1} makes them hold" if seeds == "hold one at a time" else ""
        note("the server's seeds do not hold, so another run writes other texts", remedy)
    if not reports_stop:
        note("the server does not tell the stop string from the model's end of text; both count as finished", "")
    return ServerAbilities(dialect=dialect, seeds=seeds, logprobs=logprobs, tells_ends=reports_stop)


def check_top_k(client: CompletionsClient, dialect: Dialect, stop: str) -> None:
    """Raise `OptionError` unless the server writes the same text for all seeds with top-k 1."""
    greedy = Sampling(top_k=1, top_p=0, max_new_tokens=8)
    if dialect == "plain" or len({*_trial(client, greedy, stop, dialect)}) > 1:
        raise OptionError(
            f"{client.base_url}: the server does not know top-k, or ignores it",
            "give {top_k=0} (the server knows top-p and temperature)",
        )


def _dialect(client: CompletionsClient, stop: str) -> tuple[Dialect, bool, bool]:
    """Return the first dialect that the server accepts, and whether it reports log-probabilities and stops."""
    sampling = Sampling(top_k=1, top_p=0, max_new_tokens=4)
    for dialect, more in product(get_args(Dialect), ({"logprobs": 1}, {})):
        body = request_body(PROBES[0], sampling, [stop], 0, dialect, **more)
        try:
            answer = client.ask(body, may_refuse=dialect != "plain" or bool(more))
        except RequestRefusedError:
            continue
        # one that stops at the stop string in the prompt gives a part of it
        if answer.text and PROBES[0].startswith(answer.text[: len(PROBES[0])]) and len(answer.text) > LEAST_ECHO:
            raise OptionError(
                f"{client.base_url}: its texts begin with their prompts", "start it so that it writes the text alone"
            )
        return dialect, bool(answer.token_logprobs), bool(answer.stopped_by)
    raise AssertionError("the plainest request raises an error if it is refused")


def _trial(client: CompletionsClient, sampling: Sampling, stop: str, dialect: Dialect, workers: int = 1) -> list[str]:
    """Return the texts that the server writes with seeds 0, 1, ..., `workers` of them at the same time."""
    bodies = [request_body(PROBES[0], sampling, [stop], seed, dialect) for seed in range(TRIALS)]
    answers = sorted(in_threads(client.ask, bodies, workers), key=lambda numbered: numbered[0])
    return [answer.text for _, answer in answers]
