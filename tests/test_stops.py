from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dino_pipeline.decoding.tokenization import Ending, StopRule
from dino_pipeline.errors import ModelError
from tests.toys import VOCAB, char_tokenizer


def find_at_each_step(rule: StopRule, tokens: list[int]) -> tuple[int, Ending | None]:
    """Feed tokens one by one, as the decoder does; return how many it took."""
    for count in range(1, len(tokens) + 1):
        if ending := rule.find(tokens[:count]):
            return count, ending
    return len(tokens), None


def written(text: str) -> list[int]:
    return [VOCAB[character] for character in text]


@pytest.mark.parametrize(
    ("stop", "newline_ends", "text", "count", "ending"),
    [
        ('"', True, 'One. "Two', 6, Ending("One. ", "stop")),
        ('"', True, "One\ntwo", 4, Ending("One", "newline")),
        ('"', False, 'One\ntwo"', 8, Ending("One\ntwo", "stop")),
        ("<END>", True, "A <EN <END> b", 11, Ending("A <EN ", "stop")),
        ("END", False, "ENEND", 5, Ending("EN", "stop")),
        ('"', True, "No end", 6, None),
    ],
)
def test_where_a_text_ends(stop: str, newline_ends: bool, text: str, count: int, ending: Ending | None) -> None:
    rule = StopRule(char_tokenizer(), len(VOCAB), stop, stop_at_newline=newline_ends)
    assert find_at_each_step(rule, written(text)) == (count, ending)


def pieces(vocabulary: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({piece: at for at, piece in enumerate(vocabulary)}, unk_token=vocabulary[0]))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_a_token_that_holds_the_quote_and_more_stops() -> None:
    rule = StopRule(pieces(["One", '."', '"\n', 'x"\ny', "\n"]), 5, '"', stop_at_newline=True)
    assert rule.find([0, 1]) == Ending("One.", "stop")
    assert rule.find([0, 2]) == Ending("One", "stop")
    assert rule.find([0, 3]) == Ending("Onex", "stop")
    assert rule.find([0, 4]) == Ending("One", "newline")


def test_a_stop_string_is_found_however_it_is_split() -> None:
    rule = StopRule(pieces(["One", "<", "/a", ">", "</a", "a>", "/"]), 7, "</a>", stop_at_newline=True)
    for tokens in ([0, 1, 2, 3], [0, 4, 3], [0, 1, 6, 5]):
        assert find_at_each_step(rule, tokens) == (len(tokens), Ending("One", "stop"))


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes, among which a typographic quotation mark takes three."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({piece: at for at, piece in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_a_quote_split_over_bytes_is_found() -> None:
    tokenizer = byte_tokenizer()
    rule = StopRule(tokenizer, len(tokenizer), "”", stop_at_newline=True)
    tokens = tokenizer("Öl ist da.” Und")["input_ids"]
    count, ending = find_at_each_step(rule, tokens)
    assert ending == Ending("Öl ist da.", "stop")
    assert count == len("Öl ist da.”".encode())


@pytest.mark.parametrize(
    ("stop", "said"),
    [("<sep>", "'<sep>' is a special token of the model, which is never written"), ("”", "holds a part of the stop")],
)
def test_a_stop_string_that_can_never_come_is_refused(stop: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        StopRule(char_tokenizer(), len(VOCAB), stop, stop_at_newline=True)
