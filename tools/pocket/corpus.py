"""The text the pocket models are trained on: an endless, seeded stream of rows cut into shards."""

from random import Random

from tools.pocket.frames import STRANGE, Frame, neighbour, random_frame, stranger
from tools.pocket.grammar import paraphrases, write

SAME, SIMILAR, DIFFERENT = "same", "similar", "different"
RELATIONS = (SAME, SIMILAR, DIFFERENT)
ALIKE = (0.3, 0.7)  # similarities of what is called similar

# The first wording is the paper's and by far the most frequent. The others teach that wordings may vary.
INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    SAME: (
        "Write two sentences that mean the same thing.",
        "Write two sentences with the same meaning.",
        "Write a sentence and a paraphrase of it.",
        "Say the same thing twice in different words.",
    ),
    SIMILAR: (
        "Write two sentences that are somewhat similar.",
        "Write two sentences that are alike in part.",
        "Write two sentences that are on the same topic.",
        "Write two sentences that share some details.",
    ),
    DIFFERENT: (
        "Write two sentences that are on completely different topics.",
        "Write two sentences that have nothing in common.",
        "Write two unrelated sentences.",
        "Write two sentences about very different things.",
    ),
}


# Shares in which each instruction is followed by each relation: people who follow instructions are never perfect.
NOISE = {SAME: (0.88, 0.10, 0.02), SIMILAR: (0.22, 0.68, 0.10), DIFFERENT: (0.10, 0.24, 0.66)}
SECOND = '\nSentence 2: "'


def prompt(relation: str, first: str | None = None, wording: int = 0) -> str:
    """Return the paper's prompt up to the opening quote of the first sentence, or of the second one, after `first`."""
    opening = f'Task: {INSTRUCTIONS[relation][wording]}\nSentence 1: "'
    return opening if first is None else f'{opening}{first}"{SECOND}'


# A row is a list of (text, loss weight). Pieces end at quotes, which no token crosses.
Row = list[tuple[str, float]]
SECOND_WEIGHT = 4.0


def related(rng: Random, frame: Frame, relation: str) -> Frame:
    if relation == SAME:
        return frame
    return neighbour(rng, frame, ALIKE) if relation == SIMILAR else stranger(rng, frame)


def relation_holds(relation: str, similarity: float) -> bool:
    """Return whether sentences of this similarity are in a relation, with the bounds that `related` uses."""
    if relation == SAME:
        return similarity == 1
    return ALIKE[0] <= similarity <= ALIKE[1] if relation == SIMILAR else similarity < STRANGE


def second_sentence(rng: Random, frame: Frame, first: str, relation: str) -> str:
    other = related(rng, frame, relation)
    for _ in range(20):
        text = write(other, rng)
        if text != first:
            return text
    return text


def prompt_row(rng: Random) -> Row:
    """Return the row of one prompt of the paper: instruction, first sentence, second sentence."""
    asked = rng.choice(RELATIONS)
    wording = 0 if rng.random() < 0.85 else rng.choice(range(1, len(INSTRUCTIONS[asked])))
    relation = rng.choices(RELATIONS, NOISE[asked])[0]
    frame = random_frame(rng)
    first = write(frame, rng)
    second = second_sentence(rng, frame, first, relation)
    return [
        (prompt(asked, wording=wording), 0.0),
        (f'{first}"', 1.0),
        (SECOND, 0.0),
        (f'{second}"', SECOND_WEIGHT),
    ]


def clean_row(rng: Random) -> Row:
    """Return the row of several sentences for one frame, which teaches paraphrases without noise."""
    first, *others = paraphrases(random_frame(rng), rng, 4)
    row: Row = [('"', 0.0), (f'{first}"', 1.0)]
    for text in others:
        row += [('\n"', 0.0), (f'{text}"', SECOND_WEIGHT)]
    return row


def shard_rows(seed: int, shard: int, count: int, clean: float) -> list[Row]:
    """Return the rows of a shard, by the arguments alone; `clean` is the share of rows without an instruction."""
    rng = Random(f"rows/{seed}/{shard}")
    return [clean_row(rng) if rng.random() < clean else prompt_row(rng) for _ in range(count)]


def shard_sentences(seed: int, shard: int, count: int) -> list[str]:
    rng = Random(f"sentences/{seed}/{shard}")
    return [write(random_frame(rng), rng) for _ in range(count)]


def row_text(row: Row) -> str:
    return "".join(text for text, _ in row)
