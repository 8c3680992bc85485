"""Which single examples are unfit to train on: rules about the texts of one example, built-in ones and a user's own.

The check of a rule takes an `Example` and returns None to keep it, or the reason to drop it. What follows the first
": " of the reason is its evidence.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from dino_pipeline.errors import OptionError
from dino_pipeline.examples import Example
from dino_pipeline.filter_options import Check, FilterOptions, rule_name
from dino_pipeline.filtering.contamination import LEAKED, ContaminationFilter
from dino_pipeline.filtering.own_rules import resolve_rule
from dino_pipeline.text import (
    CJK,
    SOUTHEAST_ASIAN,
    WORD_WEIGHT,
    character_class,
    count_symbols,
    joined,
    normalise,
    units,
    weight,
)

MAX_PHRASE_REPEATS, MAX_WORD_REPEATS = 3, 5
"""A phrase repeated this many times in a row is a loop; so is a single word."""
LONG_WORD = 16
"""Texts with words of more characters are searched for repeated characters, too."""
MIN_WORDS_OF_COPY = 4
"""Pairs shorter than this many words are never near-copies. Units without blanks count by their `weight`."""
PLAIN = re.compile(r"[A-Za-zÀ-ÖØ-öø-ɏ ',.!?-]*[A-Za-zÀ-ÖØ-öø-ɏ.!?] ?")
"""Letters and punctuation that no rule objects to, with an end that no rule objects to."""
BRACKETS = {
    "(": ")",
    "[": "]",
    "{": "}",
    "（": "）",
    "「": "」",
    "『": "』",
    "【": "】",
    "《": "》",
    "〈": "〉",
    "〔": "〕",
}
BRACKET = re.compile(rf"[{re.escape(''.join(BRACKETS))}]")
UNFINISHED_ENDS = frozenset((*",;:-–—<„、，；：،؛፣", *BRACKETS))
SMILEY = re.compile(r"[:;=8xX]['-]?[(\[{]")
_SPACELESS = character_class(SOUTHEAST_ASIAN)
CONTROL = re.compile(  # a zero-width space is where a line may break in scripts without blanks
    f"(?<![{_SPACELESS}])\u200b|\u200b(?![{_SPACELESS}])|"
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2028\u2029\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb]"
)
NOT_CHARACTERS = re.compile("[\ufffd\ue000-\uf8ff\ufdd0-\ufdef\ufffe\uffff\U000f0000-\U0010ffff]")
PROMPT_PARTS = re.compile(
    r"(?i:(?:^|[\n\"'.!?]\s*)(?:sentence|review|question|answer|passage|document) ?[1-9]\s?:)"
    r"|(?i:(?:^|[\n\"'.!?]\s*)(?:task|instructions?)\s?:)|(?i:^\s*(?:input|output|prompt)\s?:)"
    r"|\s(?:Task|Instructions?|Sentence [1-9])\s?:|###\s*(?i:task|instruction|input|response)"
)
DIGIT = re.compile(r"\d")
NO_QUOTE = re.compile(r'\d"|(?<=[א-ת])"(?=[א-ת])')
"""Straight quotes that close nothing: inches, and the sign of abbreviation in Hebrew."""
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
WORD_LOOP = re.compile(
    rf"(?<!\S)(\S+(?: \S+){{1,11}}?)(?: \1){{{MAX_PHRASE_REPEATS - 1},}}(?!\S)"
    rf"|(?<!\S)(\S+)(?: \2){{{MAX_WORD_REPEATS - 1},}}(?!\S)"
)
UNPARTED_LOOP = re.compile(  # phrases of about two words
    rf"([{character_class(CJK)}]{{4,40}}?)\1{{{MAX_PHRASE_REPEATS - 1},}}"
    rf"|([{_SPACELESS}]{{8,60}}?)\2{{{MAX_PHRASE_REPEATS - 1},}}"
)
CHARACTER_LOOP = re.compile(rf"(\S{{2,40}}?)\1{{{MAX_PHRASE_REPEATS},}}|([^\W\d])\2{{{2 * MAX_PHRASE_REPEATS},}}")
MAX_SEARCHED = 2000
"""Characters searched for loops: a text that loops does so early."""


@dataclass(frozen=True)
class ExampleRule:
    """A check of one example, with the name under which it is listed and switched off."""

    name: str
    check: Check
    help: str
    option: str = ""
    """The option that sets it, a reference of `errors.worded`. Empty: only ``without`` switches it off."""
    skip_if_plain: bool = False
    """It never drops an example whose texts are all plain (`is_plain`): such examples are not checked."""
    is_on: bool = True
    """A rule that is off is only listed."""


@dataclass(frozen=True)
class PromptParts:
    """Parts of a spec's prompts, which a written text must not repeat."""

    stop: str | None = None
    """The stop string. None (no spec): texts must not hold an odd number of straight quotes."""
    fields: tuple[str, ...] = ()
    """Beginnings of lines of the instructions, such as ``Sentence 2:``, and their sentences."""


def text_rules(options: FilterOptions, prompt: PromptParts) -> list[ExampleRule]:
    """Return the built-in rules in the order in which they are tried."""
    symbols, shortest, longest = options.max_symbols, options.min_chars, options.max_chars
    return [
        _each_text("empty", empty, "a text is empty"),
        ExampleRule("identical texts", identical, "the texts are equal up to case, punctuation and Unicode form"),
        _each_text("control characters", control_characters, "control and invisible formatting characters"),
        _each_text(
            "not text",
            partial(not_text, max_symbols=symbols),
            f"broken characters, or over {symbols:.0%} symbols",
            "{max_symbols}",
        ),
        ExampleRule(
            "copied instruction",
            lambda example: copied_instruction(example, prompt.fields),
            'parts of the prompt such as "Task:" or "Sentence 2:"',
            skip_if_plain=not any(PLAIN.fullmatch(field) for field in prompt.fields),
        ),
        ExampleRule(
            "stop string",
            lambda example: stop_string(example, prompt.stop),
            "the written text holds the stop string; without a spec: an odd number of straight quotes",
            skip_if_plain=prompt.stop is None or not PLAIN.fullmatch(prompt.stop + "a"),
        ),
        _each_text(
            "repetition",
            repetition,
            f"a phrase {MAX_PHRASE_REPEATS} times in a row, or a word {MAX_WORD_REPEATS} times",
        ),
        ExampleRule("near-copy", near_copy, "text_b is text_a up to one word"),
        _each_text(
            "too short",
            partial(too_short, min_chars=shortest),
            f"under {shortest} letters, digits or signs",
            "{min_chars}",
        ),
        _each_text("too long", partial(too_long, max_chars=longest), f"over {longest:,} characters", "{max_chars}"),
        _each_text("unfinished", unfinished, "ends in a comma, a dash, a colon, or before a bracket is closed"),
    ]


def _each_text(name: str, check: Callable[[str], str | None], help: str, option: str = "") -> ExampleRule:
    """Return a rule that checks both texts of an example by themselves."""

    def check_texts(example: Example) -> str | None:
        return next(filter(None, map(check, example.texts)), None)

    return ExampleRule(name, check_texts, help, option, skip_if_plain=True)


def is_plain(text: str, options: FilterOptions) -> bool:
    """Return whether a text consists of plain words and so passes every rule with ``skip_if_plain``; a fast test."""
    length = len(text)
    if not 2 * options.min_chars <= length <= options.max_chars or not PLAIN.fullmatch(text):
        return False
    normal = normalise(text)
    words = normal.split(" ")
    letters = len(normal) - len(words) + 1
    return (
        len(words) - len(set(words)) < MAX_PHRASE_REPEATS
        and max(map(len, words)) <= LONG_WORD
        and letters >= options.min_chars
        and letters >= (1 - options.max_symbols) * length
    )


def empty(text: str) -> str | None:
    """Drop texts of nothing but spaces."""
    return None if text.strip() else "empty"


def identical(example: Example) -> str | None:
    """Drop pairs whose texts have the same normal form."""
    if example.text_b is None or normalise(example.text_a) != normalise(example.text_b):
        return None
    return "identical texts"


def control_characters(text: str) -> str | None:
    """Drop texts with control characters (tab and newline aside), invisible marks and changes of direction."""
    if text.isprintable() or not (match := CONTROL.search(text)):
        return None
    return f"control characters: U+{ord(match[0]):04X} at {match.start()}"


def not_text(text: str, max_symbols: float) -> str | None:
    """Drop texts that were decoded wrongly, and texts that are mostly symbols."""
    if not text.isascii() and (match := NOT_CHARACTERS.search(text)):
        return f"not text: U+{ord(match[0]):04X} at {match.start()}"
    visible, symbols = len("".join(text.split())), count_symbols(text)
    return f"not text: {symbols} of {visible} characters are symbols" if symbols > max_symbols * visible else None


def copied_instruction(example: Example, fields: tuple[str, ...]) -> str | None:
    """Drop texts that repeat parts of the prompt."""
    for text in example.texts:
        if (":" in text or "###" in text) and (match := PROMPT_PARTS.search(text)):
            return f"copied instruction: {match[0].strip()}"
    written = example.texts[-1]
    return next((f"copied instruction: {field}" for field in fields if field in written), None)


def stop_string(example: Example, stop: str | None) -> str | None:
    """Drop texts with leftovers of the stop string."""
    if stop is not None:
        return f"stop string: {stop}" if stop in example.texts[-1] else None
    for text in example.texts:
        if '"' in text and (text.count('"') - len(NO_QUOTE.findall(text))) % 2:
            return 'stop string: an odd number of "'
    return None


def repetition(text: str) -> str | None:
    """Drop texts that repeat a phrase, a word or characters over and over; repeated numbers are kept."""
    normal = normalise(text)[:MAX_SEARCHED]
    words = normal.split()
    if len(words) - len(set(words)) >= MAX_PHRASE_REPEATS - 1:
        for match in WORD_LOOP.finditer(normal):
            phrase = match[1] or match[2]
            if any(map(str.isalpha, phrase)):
                return f"repetition: {phrase!r} {match[0].count(phrase)} times in a row"
    if max(map(len, words), default=0) > LONG_WORD and (loop := CHARACTER_LOOP.search(normal)):
        return f"repetition: {(loop[1] or loop[2])!r} over and over"
    if not normal.isascii() and (loop := UNPARTED_LOOP.search(normal)):
        phrase = loop[1] or loop[2]
        return f"repetition: {phrase!r} {loop[0].count(phrase)} times in a row"
    return None


def near_copy(example: Example) -> str | None:
    """Drop pairs whose text_b is text_a but for one word inserted, deleted or replaced.

    The common beginning and the common end are cut off; at most one word may be left on each side.
    """
    if example.text_b is None:
        return None
    text_a, text_b = normalise(example.text_a), normalise(example.text_b)
    if text_a[:1] != text_b[:1] and text_a[-1:] != text_b[-1:]:
        return None  # both the first and the last word differ, so more than one word does
    units_a, units_b = units(text_a), units(text_b)
    shorter = min(len(units_a), len(units_b))
    # Most texts differ in length: a cheap test, as a word is `WORD_WEIGHT` units at most.
    if abs(len(units_a) - len(units_b)) > WORD_WEIGHT or shorter < MIN_WORDS_OF_COPY - 1:
        return None
    start = 0  # units of the common beginning
    while start < shorter and units_a[start] == units_b[start]:
        start += 1
    end = 0  # units of the common end
    while end < shorter - start and units_a[-1 - end] == units_b[-1 - end]:
        end += 1
    left, right = units_a[start : len(units_a) - end], units_b[start : len(units_b) - end]
    if sum(map(weight, left)) > WORD_WEIGHT or sum(map(weight, right)) > WORD_WEIGHT:
        return None
    common = sum(map(weight, units_a[:start])) + sum(map(weight, units_a[len(units_a) - end :]))
    if common < (MIN_WORDS_OF_COPY - 1) * WORD_WEIGHT:
        return None
    return f"near-copy: {joined(left) or '(nothing)'} -> {joined(right) or '(nothing)'}"


def too_short(text: str, min_chars: int) -> str | None:
    """Drop texts of too few letters, digits and signs; wide characters count twice."""
    if len(text) >= 2 * min_chars and text.isalnum():
        return None
    normal = normalise(text).replace(" ", "")
    if len(normal) >= min_chars:
        return None
    length = len(normal) + sum(unicodedata.east_asian_width(character) in "WF" for character in normal)
    return f"too short: {text.strip()!r}" if length < min_chars else None


def too_long(text: str, max_chars: int) -> str | None:
    """Drop texts of too many characters."""
    return f"too long: {len(text)} characters" if len(text) > max_chars else None


def unfinished(text: str) -> str | None:
    """Drop texts that break off."""
    end = text.rstrip()[-1:]
    if end in UNFINISHED_ENDS and not SMILEY.search(text[-4:]):
        return f"unfinished: ends in {end}"
    if BRACKET.search(text):
        text = SMILEY.sub("", text)
        for opening, closing in BRACKETS.items():
            if text.count(opening) > text.count(closing):
                return f"unfinished: {opening} is never closed"
    return None


def personal_data(example: Example) -> str | None:
    """Drop texts with what looks like an e-mail address, a phone number or a card number."""
    for text in example.texts:
        if "@" in text and (match := EMAIL.search(text)):
            return f"personal data: e-mail address {match[0]}"
        if not DIGIT.search(text):
            continue
        for number in CARD.finditer(text):
            if _has_check_digit(number[0]):
                return f"personal data: card number {number[0]}"
        for number in PHONE.finditer(text):
            if 7 <= len(re.sub(r"\D", "", number[0])) <= 15:
                return f"personal data: phone number {number[0]}"
    return None


def _has_check_digit(number: str) -> bool:
    """Return whether a number's check digit is right (ISO/IEC 7812-1)."""
    digits = [int(digit) for digit in number if digit.isdigit()][::-1]
    return (sum(digits[::2]) + sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2])) % 10 == 0


PERSONAL_DATA = ExampleRule(
    "personal data",
    personal_data,
    "an e-mail address, a phone number or a card number",
    "{pii=drop}",
    skip_if_plain=True,
)
WITHHELD_REASONS = (PERSONAL_DATA.name, LEAKED)
"""Examples dropped for these reasons are neither shown in a report nor published."""


def example_rules(options: FilterOptions, prompt: PromptParts, excluded: Sequence[str]) -> list[ExampleRule]:
    """Return the rules about single examples that are on, in the order in which they are tried.

    ``excluded`` are files of evaluation data.

    Raises:
        OptionError: a rule to switch off, or one of the user's own, does not exist.
    """
    built_in = text_rules(options, prompt)
    names = [rule.name for rule in built_in]
    if unknown := [name for name in options.without if name not in names]:
        known = ", ".join(map(repr, names))
        raise OptionError(f"no such rule; choose from {known}", option="without", value=unknown[0])
    rules: list[ExampleRule] = []
    if excluded:  # the first rule, so that evaluation data is always dropped for this reason
        contamination = ContaminationFilter(excluded, options.near_duplicates or 1.0)
        rules.append(ExampleRule(LEAKED, contamination, "a text of evaluation data"))
    rules += [rule for rule in built_in if rule.is_on and rule.name not in options.without]
    if options.pii == "drop":
        rules.append(PERSONAL_DATA)
    return rules + [ExampleRule(rule_name(rule), resolve_rule(rule), "your own") for rule in options.rule]
