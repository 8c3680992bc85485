"""The seven STS sets that papers report, read from SentEval's files or one TSV a subset, in the papers' protocol."""

from __future__ import annotations

import hashlib
import math
import re
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from dino_pipeline.errors import DataError, OptionError, first_line
from dino_pipeline.evaluation.suites.suite import EvaluationSet, Score
from dino_pipeline.evaluation.suites.pairs import Aggregate, Pair, ScoredPairs
from dino_pipeline.files import folder_replaced
from dino_pipeline.measures import mean
from dino_pipeline.readers import read_lines, read_tab_separated
from dino_pipeline.text import as_number

Text = Literal["raw", "tokenized"]
Sick = Literal["test", "full"]
SIZES = {"STS12": 3108, "STS13": 1500, "STS14": 3750, "STS15": 3000, "STS16": 1186, "STS-B": 1379, "SICK-R": 4927}
"""Pairs of each set, as papers report them."""
ONE_PART = ("STS-B", "SICK-R")
FULL_SICK = 9927
MEAN = "mean"
"""Name of the row that takes the seven together."""
NAMES = {"stsb": "STS-B", "stsbenchmark": "STS-B", "sick": "SICK-R", "sickr": "SICK-R"}
LEFT_OUT = {("STS13", "SMT"), *((f"STS{year}", "ALL") for year in range(12, 17))}
"""Not free, so that SentEval and the papers go without; all subsets once more."""
SICK_PARTS = {"test": "SICK_test_annotated.txt", "train": "SICK_train.txt", "trial": "SICK_trial.txt"}
HUB = ("princeton-nlp/datasets-for-simcse", "senteval.tar")
"""SentEval's files as SimCSE's authors published them."""
LOWER, APART = 0.99, 0.8
"""Texts are taken to be prepared if such shares of them are in lower case, and have their last mark set apart."""
ABBREVIATED = re.compile(r"\.\w+\.$")
"""The tokenizer leaves such ends as they are: u.s."""
TABLE = re.compile(r"(STS[-_ ]?1[2-6]|STS[-_ ]?B(?:enchmark)?|SICK(?:[-_ ]?R)?)(?:[-_. ](.+))?\.tsv", re.IGNORECASE)


@dataclass(frozen=True)
class Protocol:
    """Where figures stop being comparable (`Reimers & Gurevych 2019`, `Gao et al. 2021`, appendix B)."""

    aggregate: Aggregate = "all"
    text: Text = "raw"
    sick: Sick = "test"


Part = list[Pair]
Parts = dict[str, Part]
"""By the name of the subset."""


def read_sts(folder: Path, protocol: Protocol) -> tuple[list[ScoredPairs], list[str]]:
    """Read those of the seven sets that are there.

    Args:
        folder: SentEval's layout (``STS/``, ``SICK/``), or one TSV a subset: ``STS12.MSRpar.tsv``.
        protocol: what to make of them.

    Returns:
        The sets, and what should be known of them: sizes that differ, sets that are missing.

    Raises:
        DataError: a file is not in its format.
        OptionError: none of the sets is there.
    """
    if not folder.is_dir():
        raise OptionError(f"--data-dir {folder}: is no folder; give the one that holds STS/ and SICK/, or TSV files")
    places = [folder / place for place in ("", "downstream", "data/downstream", "data")]
    root = next((each for each in places if (each / "STS").is_dir() or (each / "SICK").is_dir()), None)
    found, ignored = (_senteval(root, protocol.sick), []) if root else _tables(folder, protocol.sick)
    sets: list[ScoredPairs] = []
    notes = [f"{folder}: not read: {', '.join(ignored)}"] if ignored else []
    for name in SIZES:
        parts = {part: pairs for part, pairs in found.get(name, {}).items() if (name, part.upper()) not in LEFT_OUT}
        if empty := [part for part, pairs in parts.items() if not pairs]:
            raise DataError(f"{folder}: {name} {empty[0]} holds no pair with a score; mend it, or take it away")
        if not parts:
            notes.append(f"{name}: is not in {folder}; there is no mean of seven without it")
            continue
        if protocol.aggregate != "all" and len(parts) == 1 and name not in ONE_PART:
            raise OptionError(
                f"--aggregate {protocol.aggregate}: the subsets of {name} are one file in {folder} and cannot be told "
                "apart; give a file each, or --aggregate all"
            )
        each = _prepared(name, parts, protocol)
        if each.size != (expected := usual_size(name, each.protocol)):
            notes.append(f"{name}: {each.size} pairs, {expected} are usual; not comparable with published figures")
        sets.append(each)
    if not sets:
        raise OptionError(f"--data-dir {folder}: holds none of the STS sets, as STS/, SICK/ or STS12.MSRpar.tsv")
    return sets, notes


def usual_size(name: str, protocol: Mapping[str, str]) -> int:
    """Return how many pairs a set has where it is whole."""
    return FULL_SICK if protocol.get("sick") == "full" else SIZES[name]


def _prepared(name: str, parts: Parts, protocol: Protocol) -> ScoredPairs:
    if name in ONE_PART:  # however many files
        parts = {name: [pair for part in parts.values() for pair in part]}
    stamp = {"similarity": "cosine", "aggregate": protocol.aggregate if len(parts) > 1 else "all", "text": "raw"}
    if name == "SICK-R":  # SentEval leaves its texts as they are
        stamp["sick"] = protocol.sick
    elif looks_tokenized(parts.values()):
        stamp["text"] = "tokenized"
    elif protocol.text == "tokenized":
        stamp["text"] = "tokenized"
        parts = {part: [(tokenized(a), tokenized(b), gold) for a, b, gold in each] for part, each in parts.items()}
    return ScoredPairs(name, list(parts.values()), "sts", aggregate=protocol.aggregate, protocol=stamp)


def looks_tokenized(parts: Iterable[Part]) -> bool:
    """Say whether texts are in lower case with punctuation set apart, as SentEval's preparation leaves them."""
    texts = [text for part in parts for first, second, _ in part for text in (first, second)]
    lower = sum(text == text.lower() for text in texts)
    ending = [text for text in texts if text.endswith((".", "?", "!")) and not ABBREVIATED.search(text)]
    apart = sum(text[-2:-1] == " " for text in ending)
    return lower >= LOWER * len(texts) and bool(ending) and apart >= APART * len(ending)


@cache
def _tokenizer() -> Callable[..., str]:
    from sacremoses import MosesTokenizer

    tokenize: Callable[..., str] = MosesTokenizer(lang="en").tokenize
    return tokenize


def tokenized(text: str) -> str:
    """Return a text as SentEval prepares it: by Moses' tokenizer for English, nothing escaped, in lower case."""
    return _tokenizer()(text, escape=False, return_str=True).lower()


def _senteval(root: Path, sick: Sick) -> dict[str, Parts]:
    found: dict[str, Parts] = {}
    for year in range(12, 17):
        folder = root / "STS" / f"STS{year}-en-test"
        inputs = sorted(folder.glob("STS.input.*.txt"))
        parts = {path.name.split(".", 2)[2].removesuffix(".txt"): path for path in inputs}
        found[f"STS{year}"] = {part: _parallel(path) for part, path in parts.items()}
    benchmark = root / "STS" / "STSBenchmark" / "sts-test.csv"
    if benchmark.exists():
        found["STS-B"] = {"test": _table(benchmark, score=4, first=5, second=6)}
    files = [root / "SICK" / SICK_PARTS[part] for part in (SICK_PARTS if sick == "full" else ("test",))]
    if files[0].exists():
        if missing := [path for path in files if not path.exists()]:
            raise DataError(f"{missing[0]}: is not there; --sick full needs it, --sick test does not")
        found["SICK-R"] = {path.stem: _table(path, score=3, first=1, second=2, header=True) for path in files}
    return found


def _parallel(path: Path) -> Part:
    """Read a file of two texts a line, and the file of scores beside it; a blank score is a pair nobody scored."""
    scores = path.with_name(path.name.replace("STS.input.", "STS.gs.", 1))
    rows, gold = _lines(path), _lines(scores)
    while len(gold) > len(rows) and not gold[-1]:
        gold.pop()
    if len(rows) != len(gold):
        raise DataError(f"{scores}: {len(gold)} scores for the {len(rows)} pairs of {path.name}; line them up")
    both = enumerate(zip(rows, gold, strict=True), start=1)
    scored = [(number, row, score) for number, (row, score) in both if score.strip()]
    return [
        (*_texts(row.split("\t"), (0, 1), path, number), _score(score, scores, number)) for number, row, score in scored
    ]


def _table(path: Path, *, score: int, first: int, second: int, header: bool = False, tokens: bool = True) -> Part:
    """Read a file of tab-separated columns without quoting, given by number; SentEval takes texts as their tokens."""
    pairs = []
    for number, columns in read_tab_separated(path, newline="\n"):
        if columns == [""] or (header and number == 1):
            continue
        if len(columns) <= max(score, first, second):
            raise DataError(
                f"{path}, line {number}: {len(columns)} columns, {max(score, first, second) + 1} are needed"
            )
        if columns[score].strip():
            texts = _texts(columns, (first, second), path, number, tokens=tokens)
            pairs.append((*texts, _score(columns[score], path, number)))
    return pairs


def _tables(folder: Path, sick: Sick) -> tuple[dict[str, Parts], list[str]]:
    """Read files named set.subset.tsv, of score, first text and second text; return the names of others, too."""
    found: dict[str, Parts] = {}
    ignored = []
    for path in sorted(folder.glob("*.[tT][sS][vV]")):
        named = TABLE.fullmatch(path.name)
        plain = re.sub(r"[^a-z0-9]", "", named[1].lower()) if named else ""
        name, part = NAMES.get(plain, plain.upper()), (named[2] or "") if named else ""
        if not named or not _belongs(name, part, sick):
            ignored.append(path.name)
        elif part in found.setdefault(name, {}):
            raise DataError(f"{path}: another file there holds the same part of {name}; take one away")
        else:
            found[name][part] = _table(path, score=0, first=1, second=2, tokens=False)
    return found, ignored


def _belongs(name: str, part: str, sick: Sick) -> bool:
    """Say whether a part is evaluated on: some sets have parts for training, too."""
    training = part.lower().partition(".")[0] in {"train", "trial", "dev", "validation"}
    return not training or (name == "SICK-R" and sick == "full")


def _lines(path: Path) -> list[str]:
    """Return a file's lines; only a line feed ends one, whatever else Unicode counts as a line's end."""
    return [line.removesuffix("\n").removesuffix("\r") for line in read_lines(path, newline="\n")]


def _texts(
    columns: Sequence[str], at: tuple[int, int], path: Path, number: int, *, tokens: bool = True
) -> tuple[str, str]:
    if len(columns) <= max(at):
        raise DataError(f"{path}, line {number}: one text, not two with a tab between them")
    first, second = (" ".join(columns[each].split()) if tokens else columns[each].strip() for each in at)
    return first, second


def _score(value: str, path: Path, number: int) -> float:
    found = as_number(value.strip())
    if found is None or not math.isfinite(found):
        raise DataError(f"{path}, line {number}: {value.strip()!r:.60} is no score; give a number, or leave it blank")
    return found


LARGEST = 4 * 2**30
"""Bytes that an archive from the Hub may unpack to."""


def hub_folder(download: Callable[..., str], into: Path) -> Path:
    """Fetch SentEval's STS and SICK files from the Hub and unpack them, once, into a folder.

    Args:
        download: `huggingface_hub.hf_hub_download`.
        into: where to unpack.

    Raises:
        OptionError: they cannot be had.
    """
    repository, name = HUB
    try:
        archive = Path(download(repository, name, repo_type="dataset"))
        folder = into / archive.resolve().name  # in the Hub's cache, the name is a hash of the content
        if not (folder / "STS").is_dir():
            with tarfile.open(archive) as packed:
                _unpack(packed, folder)
    except (OSError, tarfile.TarError, ValueError) as error:
        raise OptionError(
            f"--suite sts: {repository} cannot be had from the Hub ({first_line(error)}); "
            "give the files with --data-dir"
        ) from error
    return folder


def _unpack(packed: tarfile.TarFile, folder: Path) -> None:
    """Write the files that are read, at the places where they are read, wherever the archive has them."""
    unpacked = 0
    with folder_replaced(folder) as new:
        for member in packed:
            place = re.search(r"(?:^|/)((?:STS|SICK)/(?:[^/]+/)?[^/]+\.(?:txt|csv))$", member.name)
            content = packed.extractfile(member) if place and member.isfile() else None
            unpacked += member.size
            if unpacked > LARGEST:
                raise ValueError(f"the archive unpacks to more than {LARGEST >> 20} MiB")
            if place and content and ".." not in place[1].split("/"):
                path = new / place[1]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.read())
        if not any(new.iterdir()):
            raise ValueError("the archive holds no STS files")


def with_mean(scores: Sequence[Score]) -> list[Score]:
    """Add, behind the STS sets of one model, the mean of the seven if all are there."""
    sts = [score for score in scores if score.suite == "sts"]
    if {score.data for score in sts} != set(SIZES):
        return list(scores)
    measures = {name: mean([score.measures[name] for score in sts]) for name in sts[0].measures}
    digest = hashlib.sha256("".join(score.digest for score in sts).encode()).hexdigest()[:16]
    size = sum(score.size for score in sts)
    together = Score(
        "sts", MEAN, sts[0].model, "pairs", size, _common([score.protocol for score in sts]), digest, measures
    )
    at = scores.index(sts[-1]) + 1
    return [*scores[:at], together, *scores[at:]]


def _common(protocols: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return protocols as one, each value that sets do not share spelt out."""
    keys = dict.fromkeys(key for protocol in protocols for key in protocol)
    values = {key: list(dict.fromkeys(each[key] for each in protocols if key in each)) for key in keys}
    return {key: " and ".join(found) for key, found in values.items()}


PUBLISHED: Mapping[str, Sequence[float | None]] = {
    "SBERT-base, human NLI (Reimers & Gurevych 2019)": (70.97, 76.53, 73.19, 79.09, 74.30, 77.03, 72.91, 74.89),
    "DINO x1x2, RoBERTa-base (Schick & Schütze 2021)": (64.87, 78.30, 66.38, 79.60, 76.47, 76.51, 74.26, 73.77),
    "DINO x2, RoBERTa-base (Schick & Schütze 2021)": (70.27, 81.26, 71.25, 80.49, 77.18, 77.82, 68.09, 75.20),
    "unsup-SimCSE, BERT-base (Gao et al. 2021)": (68.40, 82.41, 74.38, 80.91, 78.56, 76.85, 72.23, 76.25),
    "unsup-SimCSE, RoBERTa-base (Gao et al. 2021)": (70.16, 81.77, 73.24, 81.36, 80.65, 80.22, 68.56, 76.57),
    "DeCLUTR-base (by Gao et al. 2021)": (52.41, 75.19, 65.52, 77.12, 78.63, 72.41, 68.62, 69.99),
    "Mirror-BERT (Liu et al. 2021)": (67.4, 79.6, 71.3, 81.4, 74.3, 76.4, 70.3, 74.4),
    "Mirror-RoBERTa (Liu et al. 2021)": (64.8, 81.9, 73.2, 79.8, 78.0, 78.7, 70.6, 75.3),
    "IS-CSE, BERT-base (He et al. 2023)": (*(None,) * 7, 78.30),
    "IS-CSE, RoBERTa-base (He et al. 2023)": (*(None,) * 7, 77.73),
}
"""Spearman x 100 on STS12-16, STS-B and SICK-R, and the mean of the seven, as papers report them."""
PAPERS = Protocol(aggregate="all", text="tokenized", sick="test")
"""How those figures were made."""


def unlike_papers(sets: Sequence[EvaluationSet]) -> list[str]:
    """Return in what STS sets differ from what the published figures are on; empty if they may stand in one table."""
    sts = [each for each in sets if each.suite == "sts"]
    found = [f"{name} is missing" for name in SIZES if name not in {each.name for each in sts}]
    for each in sts:
        for key, usual in vars(PAPERS).items():
            if each.protocol.get(key, usual) != usual and (each.name, key) != ("SICK-R", "text"):
                found.append(f"{each.name}: {key} {each.protocol[key]} in place of {usual}")
        if each.size != (usual := usual_size(each.name, each.protocol)):
            found.append(f"{each.name}: {each.size} pairs in place of {usual}")
    return found
