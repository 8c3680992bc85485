"""The seven STS sets that papers report, read from SentEval's files or one TSV a subset, in the papers' protocol."""

from __future__ import annotations

import hashlib
import math
import re
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Literal

from dino_pipeline.delimited_files import read_quoted, read_tab_separated, tab_separated_quotes
from dino_pipeline.encoder_options import StsProtocol
from dino_pipeline.errors import DataError, OptionError, first_line
from dino_pipeline.evaluation.suites.moses import HERE, IN_FILES, RAW, TWICE, found_text, tokenized
from dino_pipeline.evaluation.suites.suite import EvaluationSet, Pair, Score, ScoredPairs
from dino_pipeline.examples import CUT_IT
from dino_pipeline.files import folder_replaced
from dino_pipeline.measures import mean
from dino_pipeline.rows import LeftOut, RowsRead
from dino_pipeline.text import as_number, excess
from dino_pipeline.text_files import read_lines

SIZES = {"STS12": 3108, "STS13": 1500, "STS14": 3750, "STS15": 3000, "STS16": 1186, "STS-B": 1379, "SICK-R": 4927}
"""Pairs of each set, as papers report them."""
ONE_PART = ("STS-B", "SICK-R")
"""Sets without subsets."""
FULL_SICK = 9927
"""Pairs of SICK-R with its training and trial parts."""
MEAN = "mean"
"""Name of the mean of the seven sets."""
SET_NAMES = {"stsb": "STS-B", "stsbenchmark": "STS-B", "sick": "SICK-R", "sickr": "SICK-R"}
"""Names of sets by how files spell them; the others are their own."""
LEFT_OUT = {("STS13", "SMT"), *((f"STS{year}", "ALL") for year in range(12, 17))}
"""Files that are not subsets: SMT is not free, so SentEval and the papers go without it; ALL repeats the others."""
SICK_FILES = {"test": "SICK_test_annotated.txt", "train": "SICK_train.txt", "trial": "SICK_trial.txt"}
HUB_ARCHIVE = ("princeton-nlp/datasets-for-simcse", "senteval.tar")
"""Repository and name of SentEval's files, as SimCSE's authors published them."""
TABLE_NAME = re.compile(
    r"(STS[-_ ]?1[2-6]|STS[-_ ]?B(?:enchmark)?|SICK(?:[-_ ]?R)?)(?:[-_. ](.+))?\.tsv", re.IGNORECASE
)
MAX_UNPACKED_BYTES = 4 * 2**30
"""Bytes that an archive from the Hub may unpack to."""

Subsets = dict[str, list[Pair]]
"""Pairs by the name of the subset."""
Row = tuple[str, str, float | None]
"""A pair as it is read; some have no score."""
Rows = dict[str, list[Row]]
"""Rows by the name of the subset."""


def read_sts(folder: Path, protocol: StsProtocol) -> tuple[list[ScoredPairs], list[str]]:
    """Read the STS sets that a folder holds.

    Args:
        folder: SentEval's layout (``STS/``, ``SICK/``), or one TSV a subset: ``STS12.MSRpar.tsv``.
        protocol: how to prepare them.

    Returns:
        The sets, and notes on unusual sizes, missing sets and files that were not read.

    Raises:
        DataError: a file is malformed.
        OptionError: the folder holds none of the sets, or subsets that the protocol needs apart are in one file.
    """
    if not folder.is_dir():
        raise OptionError(
            "is not a folder",
            "give the folder that holds STS/ and SICK/, or TSV files",
            option="data_dir",
            value=str(folder),
        )
    places = [folder / place for place in ("", "downstream", "data/downstream", "data")]
    root = next((place for place in places if (place / "STS").is_dir() or (place / "SICK").is_dir()), None)
    notes: list[str] = []
    if root:
        available = _read_senteval(root, protocol.sick)
    else:
        available, ignored = _read_tables(folder, protocol.sick)
        if ignored:
            notes.append(f"{folder}: not read: {', '.join(ignored)}")
    sets = []
    for name in SIZES:
        rows = {part: rows for part, rows in available.get(name, {}).items() if (name, part.upper()) not in LEFT_OUT}
        if not rows:
            notes.append(f"{name}: is not in {folder}; there is no mean of seven without it")
            continue
        subsets, read = _with_scores(name, rows)
        _check_subsets(name, subsets, protocol, folder)
        prepared = replace(_prepare(name, subsets, protocol), rows_read=(read,))
        expected = usual_size(name, prepared.protocol)
        if prepared.size != expected:
            notes.append(f"{name}: {prepared.size} pairs, {expected} are usual; not comparable with published figures")
        sets.append(prepared)
    if twice := [data.name for data in sets if data.protocol["text"] == TWICE]:
        names = ", ".join(twice)
        notes.append(f"{names}: tokenized twice (woman ' s for woman 's); not comparable with published figures")
    if not sets:
        raise OptionError(
            "holds none of the STS sets, as STS/, SICK/ or STS12.MSRpar.tsv", option="data_dir", value=str(folder)
        )
    return sets, notes


def _with_scores(name: str, rows: Rows) -> tuple[Subsets, RowsRead]:
    """Return the pairs of a set that have a score, and how many have none."""
    subsets = {part: [(a, b, score) for a, b, score in of_part if score is not None] for part, of_part in rows.items()}
    total = sum(map(len, rows.values()))
    without = {part: len(rows[part]) - len(pairs) for part, pairs in subsets.items() if len(pairs) < len(rows[part])}
    left_out: tuple[LeftOut, ...] = ()
    if without:
        place = next(iter(without)) or name
        left_out = (LeftOut(reason="without a score", rows=sum(without.values()), first=f"in {place}"),)
    return subsets, RowsRead(source=name, rows=total, left_out=left_out)


def usual_size(name: str, protocol: Mapping[str, str]) -> int:
    """Return the number of pairs in a complete set."""
    return FULL_SICK if protocol.get("sick") == "full" else SIZES[name]


def _check_subsets(name: str, subsets: Subsets, protocol: StsProtocol, folder: Path) -> None:
    """Raise an error if a subset is empty, or if subsets that are to be averaged are in one file."""
    if empty := [subset for subset, pairs in subsets.items() if not pairs]:
        raise DataError(f"{folder}: {name} {empty[0]} holds no pair with a score; repair the file or remove it")
    if protocol.aggregate != "all" and len(subsets) == 1 and name not in ONE_PART:
        raise OptionError(
            f"the subsets of {name} are one file in {folder}, so they have no scores of their own",
            "give a file for each subset, or {aggregate=all}",
            option="aggregate",
            value=protocol.aggregate,
        )


def _prepare(name: str, subsets: Subsets, protocol: StsProtocol) -> ScoredPairs:
    """Return a set as the protocol says; its ``protocol`` records what was done.

    Texts that are tokenized already stay so, and are recorded as such, whatever the protocol says. SICK-R keeps its
    capitals, as in SentEval.
    """
    if name in ONE_PART:  # even if it comes in several files
        subsets = {name: list(chain.from_iterable(subsets.values()))}
    lower = name != "SICK-R"
    parts = list(subsets.values())
    text = found_text(list(ScoredPairs(name, parts).texts()), lower=lower)
    if text == RAW and protocol.text == "tokenized":
        text = HERE
        parts = [_tokenized(part, lower=lower) for part in parts]
    aggregate = protocol.aggregate if len(parts) > 1 else "all"
    stamp = {"similarity": "cosine", "aggregate": aggregate, "text": text}
    if name == "SICK-R":
        stamp["sick"] = protocol.sick
    return ScoredPairs(name, parts, "sts", aggregate=protocol.aggregate, protocol=stamp)


def _tokenized(pairs: Sequence[Pair], *, lower: bool) -> list[Pair]:
    return [(tokenized(first, lower=lower), tokenized(second, lower=lower), gold) for first, second, gold in pairs]


# SentEval's files


def _joined(text: str) -> str:
    """Return a text with single spaces between its tokens, as SentEval reads it."""
    return " ".join(text.split())


def _read_senteval(root: Path, sick: Literal["test", "full"]) -> dict[str, Rows]:
    """Read the sets of a folder in SentEval's layout, by name."""
    sets: dict[str, Rows] = {}
    for year in range(12, 17):
        sets[f"STS{year}"] = {}
        for path in sorted((root / "STS" / f"STS{year}-en-test").glob("STS.input.*.txt")):
            subset = path.name.removeprefix("STS.input.").removesuffix(".txt")
            sets[f"STS{year}"][subset] = _read_parallel(path)
    benchmark = root / "STS" / "STSBenchmark" / "sts-test.csv"
    if benchmark.exists():
        sets["STS-B"] = {"test": _read_table(benchmark, score=4, first=5, second=6)}
    files = [root / "SICK" / SICK_FILES[part] for part in (SICK_FILES if sick == "full" else ("test",))]
    if files[0].exists():
        if missing := [path for path in files if not path.exists()]:
            raise DataError(f"{missing[0]}: does not exist", "{sick=full} needs it, {sick=test} does not")
        sets["SICK-R"] = {path.stem: _read_table(path, score=3, first=1, second=2, header=True) for path in files}
    return sets


def _read_parallel(path: Path) -> list[Row]:
    """Read a file of two texts a line, and its file of scores, some of which may be blank."""
    scores = path.with_name(path.name.replace("STS.input.", "STS.gs.", 1))
    rows = [columns for _, columns in read_tab_separated(path)]
    gold = [line.strip() for line in read_lines(scores, newline="\n")]
    while len(gold) > len(rows) and not gold[-1]:
        gold.pop()
    while len(rows) > len(gold) and rows[-1] == [""]:
        rows.pop()
    if len(rows) != len(gold):
        raise DataError(f"{scores}: {len(gold)} scores for the {len(rows)} pairs of {path.name}; give one a pair")
    pairs = []
    for number, (columns, score) in enumerate(zip(rows, gold, strict=True), start=1):
        if score and len(columns) < 2:
            raise DataError(f"{path}, line {number}: holds one text; give two with a tab between them")
        first, second, *_ = (*columns, "")
        pairs.append((_joined(first), _joined(second), _parse_score(score, scores, number)))
    return pairs


def _read_table(
    path: Path,
    *,
    score: int,
    first: int,
    second: int,
    header: bool = False,
    quotes: bool = False,
    clean: Callable[[str], str] = _joined,
) -> list[Row]:
    """Read a file of tab-separated columns; some scores may be blank.

    Args:
        path: the file.
        score: number of the column with the score, from 0.
        first: number of the column with the first text.
        second: number of the column with the second text.
        header: whether the first line is a header.
        quotes: whether quotes may stand around cells; see `tab_separated_quotes`. In SentEval's files they never do.
        clean: returns a text as it is evaluated.
    """
    needed = max(score, first, second) + 1
    pairs = []
    quoted = quotes and tab_separated_quotes(path)[0]
    for number, columns in read_quoted(path, "\t") if quoted else read_tab_separated(path):
        if columns in ([], [""]) or (header and number == 1):
            continue
        if len(columns) < needed:
            raise DataError(f"{path}, line {number}: {len(columns)} columns, {needed} are needed")
        texts = clean(columns[first]), clean(columns[second])
        if problem := next(filter(None, map(excess, texts)), ""):
            raise DataError(f"{path}, line {number}: a text {problem}", CUT_IT)
        pairs.append((*texts, _parse_score(columns[score], path, number)))
    return pairs


# One TSV a subset


def _read_tables(folder: Path, sick: Literal["test", "full"]) -> tuple[dict[str, Rows], list[str]]:
    """Read files named set.subset.tsv with the columns score, first text, second text.

    Returns:
        The sets by name, and the names of the TSV files that were not read.
    """
    sets: dict[str, Rows] = {}
    ignored = []
    for path in sorted(folder.glob("*.[tT][sS][vV]")):
        match = TABLE_NAME.fullmatch(path.name)
        spelled = re.sub(r"[^a-z0-9]", "", match[1].lower()) if match else ""
        name = SET_NAMES.get(spelled, spelled.upper())
        subset = (match[2] or "") if match else ""
        if not match or not _is_evaluated(name, subset, sick):
            ignored.append(path.name)
        elif subset in sets.setdefault(name, {}):
            raise DataError(f"{path}: another file there holds the same part of {name}; remove one of them")
        else:
            sets[name][subset] = _read_table(path, score=0, first=1, second=2, quotes=True, clean=str.strip)
    return sets, ignored


def _is_evaluated(name: str, subset: str, sick: str) -> bool:
    """Return whether a part is for evaluation; some sets have parts for training."""
    for_training = subset.lower().partition(".")[0] in {"train", "trial", "dev", "validation"}
    return not for_training or (name == "SICK-R" and sick == "full")


def _parse_score(value: str, path: Path, number: int) -> float | None:
    if not value.strip():
        return None
    score = as_number(value.strip())
    if score is None or not math.isfinite(score):
        raise DataError(
            f"{path}, line {number}: {value.strip()!r:.60} is not a score; give a number, or leave it blank"
        )
    return score


# The Hub


def hub_folder(download: Callable[..., str], into: Path) -> Path:
    """Download SentEval's STS and SICK files by `hf_hub_download`, unpack them in a folder once, and return theirs.

    Raises:
        OptionError: they cannot be downloaded or unpacked.
    """
    repository, name = HUB_ARCHIVE
    try:
        archive = Path(download(repository, name, repo_type="dataset"))
        folder = into / archive.resolve().name  # in the Hub's cache, the name is a hash of the content
        if not (folder / "STS").is_dir():
            with tarfile.open(archive) as packed:
                _unpack(packed, folder)
    except (OSError, tarfile.TarError, ValueError) as error:
        raise OptionError(
            f"{repository} cannot be downloaded from the Hub ({first_line(error)})",
            "give the files with {data_dir=FOLDER}",
            option="suite",
            value="sts",
        ) from error
    return folder


def _unpack(packed: tarfile.TarFile, folder: Path) -> None:
    """Write the files that `_read_senteval` reads to their places there, wherever the archive has them."""
    unpacked = 0
    with folder_replaced(folder) as new:
        for member in packed:
            place = re.search(r"(?:^|/)((?:STS|SICK)/(?:[^/]+/)?[^/]+\.(?:txt|csv))$", member.name)
            content = packed.extractfile(member) if place and member.isfile() else None
            unpacked += member.size
            if unpacked > MAX_UNPACKED_BYTES:
                raise ValueError(f"the archive unpacks to more than {MAX_UNPACKED_BYTES >> 20} MiB")
            if place and content and ".." not in place[1].split("/"):
                path = new / place[1]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.read())
        if not any(new.iterdir()):
            raise ValueError("the archive holds no STS files")


# Means, and the figures that papers report


def with_mean(scores: Sequence[Score]) -> list[Score]:
    """Return one model's scores with the mean of the seven STS sets behind them, if all seven are there."""
    sts = [score for score in scores if score.suite == "sts"]
    if {score.data for score in sts} != set(SIZES):
        return list(scores)
    measures = {}
    for name in sts[0].measures:
        measures[name] = mean([score.measures[name] for score in sts])
    digest = hashlib.sha256("".join(score.digest for score in sts).encode()).hexdigest()[:16]
    size = sum(score.size for score in sts)
    protocol = _common([score.protocol for score in sts])
    mean_score = Score("sts", MEAN, sts[0].model, "pairs", size, protocol, digest, measures)
    position = scores.index(sts[-1]) + 1
    return [*scores[:position], mean_score, *scores[position:]]


def _common(protocols: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return protocols as one. Settings in which they differ list all values: ``raw and tokenized``."""
    settings: dict[str, list[str]] = {}
    for protocol in protocols:
        for key, value in protocol.items():
            settings.setdefault(key, []).append(value)
    return {key: " and ".join(dict.fromkeys(values)) for key, values in settings.items()}


PUBLISHED: Mapping[str, Sequence[float | None]] = {
    "SBERT-base, human NLI (Reimers & Gurevych 2019)": (70.97, 76.53, 73.19, 79.09, 74.30, 77.03, 72.91, 74.89),
    "DINO x1x2, RoBERTa-base (Schick & Schütze 2021) ‡": (64.87, 78.30, 66.38, 79.60, 76.47, 76.51, 74.26, 73.77),
    "DINO x2, RoBERTa-base (Schick & Schütze 2021) ‡": (70.27, 81.26, 71.25, 80.49, 77.18, 77.82, 68.09, 75.20),
    "unsup-SimCSE, BERT-base (Gao et al. 2021)": (68.40, 82.41, 74.38, 80.91, 78.56, 76.85, 72.23, 76.25),
    "unsup-SimCSE, RoBERTa-base (Gao et al. 2021)": (70.16, 81.77, 73.24, 81.36, 80.65, 80.22, 68.56, 76.57),
    "DeCLUTR-base (by Gao et al. 2021)": (52.41, 75.19, 65.52, 77.12, 78.63, 72.41, 68.62, 69.99),
    "Mirror-BERT (Liu et al. 2021)": (67.4, 79.6, 71.3, 81.4, 74.3, 76.4, 70.3, 74.4),
    "Mirror-RoBERTa (Liu et al. 2021) ‡": (64.8, 81.9, 73.2, 79.8, 78.0, 78.7, 70.6, 75.3),
    "IS-CSE, BERT-base (He et al. 2023)": (*(None,) * 7, 78.30),
    "IS-CSE, RoBERTa-base (He et al. 2023)": (*(None,) * 7, 77.73),
}
"""Spearman x 100 on STS12-16, STS-B and SICK-R, and the mean of the seven, as papers report them."""
OTHER_TEXTS = "‡ a cased encoder; its authors' scripts do not read SentEval's prepared texts, as far as they are public"
"""Remark on published figures. Uncased encoders see the same words in raw and in prepared texts."""
PAPERS = {"aggregate": ("all",), "text": (IN_FILES, HERE), "sick": ("test",)}
"""Protocol of those figures. SentEval's script and `tokenized` leave the same texts."""


def unlike_papers(sets: Sequence[EvaluationSet]) -> list[str]:
    """Return in what the STS sets differ from those of the published figures; nothing if they are comparable."""
    sts = [data for data in sets if data.suite == "sts"]
    names = [data.name for data in sts]
    differences = [f"{name} is missing" for name in SIZES if name not in names]
    for data in sts:
        for key, usual in PAPERS.items():
            value = data.protocol.get(key)
            if value is not None and value not in usual:
                differences.append(f"{data.name}: {key} {value} in place of {' or '.join(usual)}")
        if data.size != (size := usual_size(data.name, data.protocol)):
            differences.append(f"{data.name}: {data.size} pairs in place of {size}")
    return differences
