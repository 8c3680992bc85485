from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino_pipeline.examples import Example
from dino_pipeline.filter_options import FilterOptions
from dino_pipeline.filtering.text_rules import PromptParts, is_plain, personal_data, text_rules
from dino_pipeline.spec_file import load_spec
from tests.test_spec import SPECS

OPTIONS = FilterOptions()
NO_SPEC = PromptParts()
WITH_SPEC = PromptParts(stop="»", fields=("Movie:", "Review:"))
FINE = [
    ("A man plays the guitar.", "Somebody makes music."),
    ("Good morning.", "Good evening."),
    ("The main task: cook for ten.", "Who answers: nobody knows."),
    ("No, no, no!", "It is very, very good (really)."),
    ("猫はマットの上に座っています。", "犬は庭で走っています。"),
    ("Катя купила хлеб.", "Мы были дома весь день."),
    ("نحن في البيت.", "ذهب الرجل إلى السوق."),
    ("On 2021-05-06 it cost $1,000,000.", "From 1990 - 2000 there were 12345678 of them."),
    ('He said "yes".', "It's a dog's life; isn't it?"),
    ("मैं हिंदी में पढ़ता हूँ।", "यह दिन अच्छा है।"),
    ("यह दिन अच्छा है।", "हाँ"),
    ("ကျွန်တော် မြန်မာစကား ပြောတတ်ပါတယ်။", "好的"),
    ("I lost my keys today :(", "Sad :( but true, we went home."),
    ("She writes C++", "He got an A+"),
    ("»Hallo, wie geht es dir?«", "‚Komm bitte nach Hause‘"),
    ("It cost $1,000,000,000,000.", "The host is 0.0.0.0, the time 00:00:00:00."),
    ("I know, I know!", "No, no, no, no, said the child."),
    ('A 10" ruler.', "6'2\" tall"),
    ("أحب القطط\u200f.", "Record Label: Sony Music"),
    ("Hobby: chess. Output: high.", "Pi is 3.14159265, more or less."),
    ("The server is 192.168.100.200 today.", "It has 1.000.000.000 inhabitants."),
    ("In 1990 1991 1992 and 10-12 14-16.", "Follow @user@mastodon.social now."),
    ("I had had it, had it not been so.", "That that is is that that is not is not."),
]


def found(text_a: str, text_b: str | None = None, prompt: PromptParts = WITH_SPEC) -> list[str]:
    """Return the reasons of all rules."""
    example = Example(text_a, text_b, 1.0)
    return [said for rule in text_rules(OPTIONS, prompt) if (said := rule.check(example)) is not None]


@pytest.mark.parametrize("pair", FINE)
def test_nothing_is_wrong_with_what_people_write(pair: tuple[str, str]) -> None:
    assert found(*pair) == []
    assert found(*pair, prompt=NO_SPEC) == []
    assert personal_data(Example(*pair, 1.0)) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("   ", "empty"),
        ("x", "too short: 'x'"),
        ("?!?!?!", "not text: 6 of 6 characters are symbols"),
        ("☃☃ so ☃☃☃", "not text: 5 of 7 characters are symbols"),
        ("A dog\ufffd barks.", "not text: U+FFFD at 5"),
        ("A do\u200bg barks.", "control characters: U+200B at 4"),
        ("A dog\x07 barks.", "control characters: U+0007 at 5"),
        ("Sentence 2: a dog barks.", "copied instruction: Sentence 2:"),
        ("A dog barks. Task: Write two sentences.", "copied instruction: . Task:"),
        ("Good film. Review: splendid.", "copied instruction: Review:"),
        ("A dog barks.» And", "stop string: »"),
        ("I like it. I like it. I like it.", "repetition: 'i like it' 3 times in a row"),
        ("It is very very very very very good.", "repetition: 'very' 5 times in a row"),
        ("我喜欢狗。我喜欢狗。我喜欢狗。", "repetition: '我喜欢狗' 3 times in a row"),
        ("So " + "ha" * 12 + " today.", "repetition: 'ha' over and over"),
        ("### Instruction Say it.", "copied instruction: ### Instruction"),
        ("猫が好き猫が好き猫が好き猫が好き猫が好き", "repetition: '猫が好き' over and over"),
        ("aaaaaaaaaaaaaaaaaaaaa", "repetition: 'aa' over and over"),
        ("A dog barks and,", "unfinished: ends in ,"),
        ("A dog barks (at night.", "unfinished: ( is never closed"),
        ("word " * 2000 + "end.", "too long: 10004 characters"),
    ],
)
def test_what_is_wrong_is_named(text: str, said: str) -> None:
    assert said in found("Somebody makes music.", text)
    assert said in found(text)


def test_without_a_spec_an_odd_quote_is_a_leftover() -> None:
    assert found("Fine.", 'A dog barks." And', NO_SPEC) == ['stop string: an odd number of "']


MAN = "A man plays the guitar."
SHIP = "Die Donaudampfschifffahrtsgesellschaft kauft heute ein neues Schiff."


@pytest.mark.parametrize(
    ("text_a", "text_b", "said"),
    [
        (MAN, "a man PLAYS, the guitar", ["identical texts", "near-copy: (nothing) -> (nothing)"]),
        (MAN, "A man plays the piano.", ["near-copy: guitar -> piano"]),
        (MAN, "A man plays guitar.", ["near-copy: the -> (nothing)"]),
        (MAN, "Now a man plays the guitar.", ["near-copy: (nothing) -> now"]),
        (MAN, "A man plays a piano.", []),
        (MAN, "The guitar plays a man.", []),
        (SHIP, SHIP.replace("neues", "altes"), ["near-copy: neues -> altes"]),
        ("她昨天在商店里买了一条漂亮的红色裙子", "她昨天在商店里买了一条漂亮的蓝色裙子", ["near-copy: 红 -> 蓝"]),
        ("यह दिन अच्छा है।", "यह दान अच्छा है।", ["near-copy: दिन -> दान"]),
    ],
)
def test_copies_up_to_one_word(text_a: str, text_b: str, said: list[str]) -> None:
    """Or up to one character, where words are not parted."""
    assert found(text_a, text_b) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Mail joe.doe+x@mail.example.org now.", "e-mail address joe.doe+x@mail.example.org"),
        ("Call +1 (555) 123-4567 now.", "phone number +1 (555) 123-4567"),
        ("Call 030 123 4567.", "phone number 030 123 4567"),
        ("Ring 555-123-4567 or so.", "phone number 555-123-4567"),
        ("Just call 5551234567.", "phone number 5551234567"),
        ("Pay with 4111 1111 1111 1111.", "card number 4111 1111 1111 1111"),
        ("Pay with 4111-1111-1111-1111!", "card number 4111-1111-1111-1111"),
    ],
)
def test_personal_data_is_found(text: str, said: str) -> None:
    assert personal_data(Example("Fine.", text, 1.0)) == f"personal data: {said}"


def test_the_specs_own_sentences_are_no_text() -> None:
    spec = load_spec(SPECS / "sts-x2.json")
    prompt = PromptParts(spec.stop, spec.fields)
    echo = "Write two sentences that mean the same thing."
    assert found("Fine so far.", echo, prompt) == [f"copied instruction: {echo}"]
    assert not is_plain(echo, OPTIONS) or not [
        rule for rule in text_rules(OPTIONS, prompt) if rule.name == "copied instruction" and rule.skip_if_plain
    ]


@pytest.mark.slow
def test_long_texts_are_judged_in_time_that_grows_with_them() -> None:
    """Hours for these, if it were the square."""
    words = " ".join(f"w{n}" for n in range(200_000))
    for text in (words, "x" * 2_000_000, "ab@" * 500_000, "漢字" * 500_000, "1 2" * 500_000):
        found(text)
        personal_data(Example(text, None, 1.0))


plain = st.text(alphabet="abc XYZ.,'!?-é:\"(5@\n\u200b", max_size=60)


@given(plain, plain, st.booleans())
def test_plain_texts_pass_every_rule_that_skips_them(text_a: str, text_b: str, has_spec: bool) -> None:
    prompt = WITH_SPEC if has_spec else NO_SPEC
    if not is_plain(text_a, OPTIONS) or not is_plain(text_b, OPTIONS):
        return
    example = Example(text_a, text_b, 1.0)
    assert [rule.name for rule in text_rules(OPTIONS, prompt) if rule.skip_if_plain and rule.check(example)] == []
    assert personal_data(example) is None


def test_plain_sentences_are_plain() -> None:
    assert is_plain("A man plays the guitar.", OPTIONS)
    assert is_plain("Où est l'été?", OPTIONS)
    assert not is_plain("no no no no", OPTIONS)
