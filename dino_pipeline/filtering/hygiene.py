"""Rules about one example: what makes it unfit to train on, whatever else is in the dataset.

A rule is a function from an `Example` to None, or to the reason why it goes. What follows the first ": " of the reason
is its evidence. A user's own rules (`--rule module:function`) are the same.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from dino_pipeline.examples import Example
from dino_pipeline.text import has_spaced_words, normalise

Check = Callable[[Example], str | None]

LOOPS, WORD_LOOPS = 3, 5
"""A phrase of some words that comes so many times in a row is a loop; so is a single word."""
LONG_WORD = 16
"""A text with words of more characters is looked at by characters, too, for loops."""
FEWEST_WORDS = 4
"""Texts that share fewer words than this less one are no copies of one another where one word differs."""
PLAIN = re.compile(r"[A-Za-zÀ-ÖØ-öø-ɏ ',.!?-]*[A-Za-zÀ-ÖØ-öø-ɏ.!?] ?")
"""Letters and punctuation that no rule looks at, with an end that is one."""
OPEN_ENDS = frozenset(",;:-–—([{<„、，；：（「『【")
BRACKETS = {"(": ")", "[": "]", "{": "}", "（": "）", "「": "」", "『": "』", "【": "】"}
BRACKET = re.compile(r"[(\[{（「『【]")
SMILEY = re.compile(r"[:;=8xX]['-]?[(\[{]")
CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2028\u2029\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb]"
)
BROKEN = re.compile("[\ufffd\ue000-\uf8ff\ufdd0-\ufdef\ufffe\uffff\U000f0000-\U0010ffff]")
ECHO = re.compile(
    r"(?i:(?:^|[\n\"'.!?]\s*)(?:sentence|review|question|answer|passage|document) ?[1-9]\s?:)"
    r"|(?i:(?:^|[\n\"'.!?]\s*)(?:task|instructions?)\s?:)|(?i:^\s*(?:input|output|prompt)\s?:)"
    r"|\s(?:Task|Instructions?|Sentence [1-9])\s?:|###\s*(?i:task|instruction|input|response)"
)
DIGIT = re.compile(r"\d")
INCHES = re.compile(r'\d"')
EMAIL = re.compile(r"(?<![@\w.+%-])[\w.+%-]{1,64}@[\w-]+(?:\.[\w-]+)+")
PHONE = re.compile(
    r"(?<![\w.,-])(?:"
    r"(?:\+|00)\d{1,3}[ .-]?(?:\(?\d{1,4}\)?[ ./-]?){2,5}\d{2,4}"  # with the country
    r"|\(\d{2,5}\)\s?\d{3,4}[ -]?\d{3,5}|\d{3}([-. ])\d{3}\1\d{4}"  # as in North America
    r"|0\d{1,5}[ /-]\d{2,4}(?:[ /-]?\d{2,4}){1,3}"  # with a trunk prefix
    r"|(?<=call )\d{7,15}|(?<=phone )\d{7,15}|(?<=tel )\d{7,15}"
    r")(?![\w,.]?\d)"
)
CARD = re.compile(r"(?<![\d.])\d(?:[ .-]?\d){12,18}(?!\d)")
CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
WORD_LOOP = re.compile(
    rf"(?<!\S)(\S+(?: \S+){{1,11}}?)(?: \1){{{LOOPS - 1},}}(?!\S)"
    rf"|(?<!\S)(\S+)(?: \2){{{WORD_LOOPS - 1},}}(?!\S)"
    rf"|(?<!\S)([{CJK}]{{4,40}})(?: \3){{{LOOPS - 1},}}(?!\S)"
)
CHARACTER_LOOP = re.compile(rf"(\S{{2,40}}?)\1{{{LOOPS},}}|([^\W\d])\2{{{2 * LOOPS},}}")
LOOKED_AT = 2000
"""Loops are looked for in so many characters: what a long text does, it does soon."""


@dataclass(frozen=True)
class Rule:
    """A check with the name under which it is listed and switched off."""

    name: str
    check: Check
    help: str
    spares_sound: bool = False
    """Whether it never turns down an example whose texts are all `sound`."""


@dataclass(frozen=True)
class HygieneOptions:
    """What a text must be like; lengths in characters."""

    min_chars: int = 3
    max_chars: int = 5000
    max_symbols: float = 0.5
    """Largest share of characters, spaces aside, that are neither letters nor digits."""
    stop: str | None = None
    """The spec's stop string: no written text holds it. None: texts hold no odd number of straight quotes."""
    fields: tuple[str, ...] = ()
    """The beginnings of lines in the spec's instructions, such as ``Sentence 2:``."""


def hygiene_rules(options: HygieneOptions) -> list[Rule]:
    """Return the built-in rules in the order in which they are tried."""
    symbols, least, most = options.max_symbols, options.min_chars, options.max_chars

    def of_text(name: str, check: Callable[[str], str | None], help: str) -> Rule:
        return Rule(name, lambda example: next(filter(None, map(check, example.texts)), None), help, True)

    return [
        of_text("empty", empty, "a text holds nothing"),
        Rule("identical texts", identical, "the texts are equal up to case, punctuation and Unicode form"),
        of_text("control characters", control_characters, "control and invisible formatting characters"),
        of_text(
            "not text", partial(not_text, max_symbols=symbols), f"broken characters, or over {symbols:.0%} symbols"
        ),
        Rule(
            "copied instruction",
            lambda example: copied_instruction(example, options.fields),
            'parts of the prompt such as "Task:" or "Sentence 2:"',
            spares_sound=not any(PLAIN.fullmatch(field) for field in options.fields),
        ),
        Rule(
            "stop string",
            lambda example: stop_string(example, options.stop),
            "the written text holds the stop string; without a spec: an odd number of straight quotes",
            spares_sound=options.stop is None or not PLAIN.fullmatch(options.stop + "a"),
        ),
        of_text("repetition", repetition, f"a phrase {LOOPS} times in a row, or a word {WORD_LOOPS} times"),
        Rule("near-copy", near_copy, "text_b is text_a up to one word"),
        of_text("too short", partial(too_short, min_chars=least), f"under {least} letters, digits or signs"),
        of_text("too long", partial(too_long, max_chars=most), f"over {most:,} characters"),
        of_text("unfinished", unfinished, "ends in a comma, a dash, a colon, or before a bracket is closed"),
    ]


def is_sound(text: str, options: HygieneOptions) -> bool:
    """Say whether a text is of plain words and so surely passes every rule that spares such texts; a fast test."""
    length = len(text)
    if not 2 * options.min_chars <= length <= options.max_chars or not PLAIN.fullmatch(text):
        return False
    normal = normalise(text)
    words = normal.split(" ")
    number = len(words)
    letters = len(normal) - number + 1
    return (
        number - len(set(words)) < LOOPS
        and max(map(len, words)) <= LONG_WORD
        and letters >= options.min_chars
        and letters >= (1 - options.max_symbols) * length
    )


def empty(text: str) -> str | None:
    """Turn down texts of nothing but spaces."""
    return None if text.strip() else "empty"


def identical(example: Example) -> str | None:
    """Turn down pairs whose texts have the same normal form."""
    if example.text_b is None or normalise(example.text_a) != normalise(example.text_b):
        return None
    return "identical texts"


def control_characters(text: str) -> str | None:
    """Turn down control characters (tab and newline aside), invisible marks and changes of direction."""
    if text.isprintable() or not (found := CONTROL.search(text)):
        return None
    return f"control characters: U+{ord(found[0]):04X} at {found.start()}"


def not_text(text: str, max_symbols: float) -> str | None:
    """Turn down what was decoded wrongly, and texts that are mostly symbols."""
    if not text.isascii() and (found := BROKEN.search(text)):
        return f"not text: U+{ord(found[0]):04X} at {found.start()}"
    normal = normalise(text)
    visible = len("".join(text.split()))
    symbols = visible - (len(normal) - normal.count(" ") if any(map(str.isalnum, normal)) else 0)
    return f"not text: {symbols} of {visible} characters are symbols" if symbols > max_symbols * visible else None


def copied_instruction(example: Example, fields: tuple[str, ...]) -> str | None:
    """Turn down texts that repeat parts of the prompt."""
    for text in example.texts:
        if (":" in text or "###" in text) and (found := ECHO.search(text)):
            return f"copied instruction: {found[0].strip()}"
    written = example.texts[-1]
    return next((f"copied instruction: {field}" for field in fields if field in written), None)


def stop_string(example: Example, stop: str | None) -> str | None:
    """Turn down leftovers of what ends a text."""
    if stop is not None:
        return f"stop string: {stop}" if stop in example.texts[-1] else None
    for text in example.texts:
        if '"' in text and (text.count('"') - len(INCHES.findall(text))) % 2:
            return 'stop string: an odd number of "'
    return None


def repetition(text: str) -> str | None:
    """Turn down texts that go round in circles; numbers may."""
    normal = normalise(text)[:LOOKED_AT]
    words = normal.split()
    if len(words) - len(set(words)) >= LOOPS - 1:
        for found in WORD_LOOP.finditer(normal):
            phrase = found[1] or found[2] or found[3]
            if any(map(str.isalpha, phrase)):
                return f"repetition: {phrase!r} {found[0].count(phrase)} times in a row"
    if max(map(len, words), default=0) > LONG_WORD and (loop := CHARACTER_LOOP.search(normal)):
        return f"repetition: {(loop[1] or loop[2])!r} over and over"
    return None


def near_copy(example: Example) -> str | None:
    """Turn down a text_b that is text_a but for one word put in, left out or exchanged."""
    if example.text_b is None:
        return None
    text_a, text_b = normalise(example.text_a), normalise(example.text_b)
    if text_a[:1] != text_b[:1] and text_a[-1:] != text_b[-1:]:
        return None  # first and last word differ
    if has_spaced_words(text_a):
        first, second, most, fewest = text_a.split(), text_b.split(), 1, FEWEST_WORDS
    else:  # two characters are a word
        first, second, most, fewest = list(text_a), list(text_b), 2, 3 * FEWEST_WORDS
    shorter = min(len(first), len(second))
    if abs(len(first) - len(second)) > most or shorter < fewest - most:
        return None
    same = 0
    while same < shorter and first[same] == second[same]:
        same += 1
    end = 0
    while end < shorter - same and first[-1 - end] == second[-1 - end]:
        end += 1
    left, right = first[same : len(first) - end], second[same : len(second) - end]
    if len(left) > most or len(right) > most or same + end < fewest - most:
        return None
    between = " " if most == 1 else ""
    return f"near-copy: {between.join(left) or '(nothing)'} -> {between.join(right) or '(nothing)'}"


def too_short(text: str, min_chars: int) -> str | None:
    """Turn down texts of too few letters, digits and signs; wide characters count twice."""
    if len(text) >= 2 * min_chars and text.isalnum():
        return None
    normal = normalise(text).replace(" ", "")
    if len(normal) >= min_chars:
        return None
    length = len(normal) + sum(unicodedata.east_asian_width(character) in "WF" for character in normal)
    return f"too short: {text.strip()!r}" if length < min_chars else None


def too_long(text: str, max_chars: int) -> str | None:
    """Turn down texts of too many characters."""
    return f"too long: {len(text)} characters" if len(text) > max_chars else None


def unfinished(text: str) -> str | None:
    """Turn down texts that break off."""
    end = text.rstrip()[-1:]
    if end in OPEN_ENDS and not SMILEY.search(text[-4:]):
        return f"unfinished: ends in {end}"
    if BRACKET.search(text):
        text = SMILEY.sub("", text)
        for opening, closing in BRACKETS.items():
            if text.count(opening) > text.count(closing):
                return f"unfinished: {opening} is never closed"
    return None


def personal_data(example: Example) -> str | None:
    """Turn down what looks like an e-mail address, a phone number or a card number."""
    for text in example.texts:
        if "@" in text and (found := EMAIL.search(text)):
            return f"personal data: e-mail address {found[0]}"
        if not DIGIT.search(text):
            continue
        for number in CARD.finditer(text):
            if _luhn(number[0]):
                return f"personal data: card number {number[0]}"
        for number in PHONE.finditer(text):
            if 7 <= len(re.sub(r"\D", "", number[0])) <= 15:
                return f"personal data: phone number {number[0]}"
    return None


def _luhn(number: str) -> bool:
    """Say whether a number's check digit is right (ISO/IEC 7812-1)."""
    digits = [int(digit) for digit in number if digit.isdigit()][::-1]
    return (sum(digits[::2]) + sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2])) % 10 == 0
