"""The decoder for Python users: write debiased texts, and score given ones, after prompts of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dino_pipeline.decoding.decoder import Decoder
from dino_pipeline.decoding.engine import Completion, Request, Scored
from dino_pipeline.decoding.loading import load_decoder, resolve_model
from dino_pipeline.decoding.tokenization import Prompt
from dino_pipeline.errors import OptionError
from dino_pipeline.generate_options import ModelOptions
from dino_pipeline.models import POCKET, ModelRef, pick_device
from dino_pipeline.options import Sampling, accepts


class Generator:
    """A language model that writes texts which are likely after one prompt and unlikely after others.

    Args:
        decoder: the loaded model.
        model: which model it is.
    """

    def __init__(self, decoder: Decoder, model: ModelRef) -> None:
        self.decoder = decoder
        self.model = model

    def __repr__(self) -> str:
        return f"Generator({self.model.name!r}, dtype={self.model.dtype!r}, device={self.decoder.model.device.type!r})"

    def write(
        self,
        prompt: str,
        counters: Sequence[str] = (),
        n: int = 1,
        *,
        seed: int = 42,
        stop: str = '"',
        keep_newlines: bool = False,
        opening: str | None = None,
        **sampling: Any,
    ) -> list[Completion]:
        """Write texts after a prompt, debiased by counter-prompts.

        The i-th text depends on the model, the prompts, the seed and the sampling, not on ``n``. Texts that reach
        ``max_new_tokens`` before a stop string are returned, too, with ``finish`` "length".

            >>> generator = dino.load_generator("gpt2")
            >>> texts = generator.write('A question: "', counters=['A statement: "'], n=8, top_k=0)
            >>> texts[0].text, texts[0].margin

        Args:
            prompt: the own prompt. It ends where the text begins, usually with an opening quotation mark.
            counters: the counter-prompts.
            n: number of texts.
            seed: seed of the random numbers.
            stop: string that ends a text.
            keep_newlines: whether texts may contain newlines. If not, a newline ends a text.
            opening: for a model with a chat template, the last part of the prompt, with which the model's answer
                begins. By default, the prompt's last line, or the last character of a prompt of one line.
            sampling: ``top_k``, ``top_p``, ``decay``, ``floor`` and ``max_new_tokens``. Defaults are the paper's.

        Returns:
            The texts in the order of their numbers, each with ``text``, ``logprob``, ``margin`` and ``finish``.

        Raises:
            OptionError: a value is wrong, or a prompt leaves no room for a text.
            ModelError: memory runs out.
        """
        drawn = Sampling.of(sampling)
        if isinstance(counters, str):
            raise OptionError("must be a list of prompts", option="counters", value=counters)
        if n < 1:
            raise OptionError("must be at least 1", option="n", value=n)
        if not stop:
            raise OptionError("must not be empty", option="stop")
        prompts = self._encoded(prompt, counters, opening)
        if not self.decoder.fits(prompts, drawn.max_new_tokens):
            raise OptionError(
                f"the prompt leaves less than {drawn.max_new_tokens} tokens of the model's context",
                "shorten the prompt, or lower {max_new_tokens}",
                option="max_new_tokens",
                value=drawn.max_new_tokens,
            )
        requests = [Request(prompts, ("write", seed, prompt, number)) for number in range(n)]
        texts = self.decoder.sample(requests, drawn, stop=stop, stop_at_newline=not keep_newlines)
        return sorted(texts, key=lambda text: text.number)

    def score(self, prompt: str, texts: Sequence[str], *, stop: str = '"', opening: str | None = None) -> list[Scored]:
        """Return how likely each text is after a prompt, with ``stop`` as its last part.

        Args:
            prompt: the prompt, as for `write`.
            texts: the texts.
            stop: string that ends a text.
            opening: as for `write`.

        Returns:
            For each text ``logprob``, the mean natural-log probability per token, and ``tokens``, their number.

        Raises:
            OptionError: a value is wrong.
        """
        if isinstance(texts, str):
            raise OptionError("must be a list of texts", option="texts", value=texts)
        self._encoded(prompt, (), opening)
        rendered = self._rendered(prompt, opening)
        return self.decoder.score([(rendered, text) for text in texts], stop=stop)

    def _encoded(self, prompt: str, counters: Sequence[str], opening: str | None) -> tuple[Prompt, ...]:
        """Return the token ids of the own prompt and the counter-prompts.

        Raises:
            OptionError: one of them has no tokens.
        """
        prompts = self.decoder.encode([self._rendered(one, opening) for one in (prompt, *counters)])
        if not all(prompts):
            raise OptionError("must not be empty", option="counters" if prompts[0] else "prompt")
        return tuple(prompts)

    def _rendered(self, prompt: str, opening: str | None) -> str:
        """Return a prompt as the model reads it."""
        if opening is None:
            opening = prompt.rpartition("\n")[2] if "\n" in prompt else prompt[-1:]
        return self.decoder.render(prompt, opening)


@accepts(ModelOptions)
def load_generator(model: str = POCKET, **options: Any) -> Generator:
    """Load a language model for writing and scoring texts.

    Args:
        model: folder or Hub id of a causal language model, or ``pocket`` for the embedded one.

    Raises:
        OptionError: an option is wrong, or a package that it needs is not installed.
        ModelError: the model cannot be loaded.
    """
    chosen = ModelOptions.of({"model": model, **options})
    device = pick_device(chosen.device)
    ref = resolve_model(chosen, device)
    return Generator(load_decoder(ref, device=device, device_map=chosen.device_map, rows=chosen.rows), ref)
