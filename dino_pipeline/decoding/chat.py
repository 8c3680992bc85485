"""A prompt as a chat model reads it: in its own template, with the answer already begun."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from dino_pipeline.errors import ModelError, first_line


def render(tokenizer: PreTrainedTokenizerBase, prompt: str, opening: str, *, otherwise: str = "--chat off") -> str:
    """Return a prompt in the tokenizer's chat template: a user's message, and the answer as far as it is given.

    Args:
        tokenizer: the model's.
        prompt: what a model without a template would go on with.
        opening: its end, with which the answer begins.
        otherwise: what to do without a template, for the message.

    Raises:
        ModelError: there is no template, or it does not leave an answer open.
    """
    if tokenizer.chat_template is None:
        raise ModelError(f"the model has no chat template; give a chat model, or {otherwise}")
    messages = [
        {"role": "user", "content": prompt.removesuffix(opening).rstrip()},
        {"role": "assistant", "content": opening},
    ]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True))
    except Exception as error:  # a template is a program of its own
        raise ModelError(
            f"the chat template leaves no answer open ({first_line(error)}); give a model with another, or {otherwise}"
        ) from error


def marks(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the strings that a template gives a meaning; in a text they would be taken for the template's own."""
    added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    return tuple(dict.fromkeys([*map(str, tokenizer.all_special_tokens), *added]))
