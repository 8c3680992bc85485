"""How do folders reach the Hugging Face Hub and come back, and what does lineage.json say of a published folder?

An upload is one commit. It does not overwrite what others made, which lineage.json tells: it names the run that made a
folder, from what, and the hash of each file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from pydantic import Field, JsonValue

from dino_pipeline import pocket
from dino_pipeline.cards.card import README, read_card, split_card
from dino_pipeline.errors import HubError
from dino_pipeline.files import file_digest, record_json, write_bytes, write_json
from dino_pipeline.hub_answers import NONSENSE, OddAnswerError, bounded_answers, nonsense
from dino_pipeline.layout import LINEAGE
from dino_pipeline.record import RunRecord, public_record
from dino_pipeline.record_base import Record
from dino_pipeline.stage_records import PublishedDataset

FORMAT: Literal[2] = 2
SplitName = Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$", max_length=200)]
"""``config/split``: parts of paths."""
Kind = Literal["dataset", "model"]
FOREIGN_FOLDERS = {".cache", ".git"}
"""Folders that git and the Hub's client make."""
NOT_HASHED = (README, ".gitattributes", LINEAGE)
"""People edit the card, and the Hub writes .gitattributes."""
PUBLISHED = "published.json"
PROBLEMS = {
    401: ("the Hub does not know who you are", "log in with `hf auth login`, or set HF_TOKEN"),
    402: ("the account's storage is used up", "make room, or publish with {raw=False}"),
    403: ("the token has no right to write there", "use one that has, or another name"),
    404: ("no such repository, user or organisation, or the token may not see it", "check the name"),
    409: ("somebody else changed it at the same time, or the name is taken", "run again"),
    412: ("somebody else changed it at the same time", "run again"),
    413: ("the Hub finds it too large", "publish with {raw=False}"),
    429: ("the Hub asks to go slower", "wait a little and run again"),
}
"""By HTTP status: what is wrong, and its remedy."""
LONGEST_MESSAGE = 600
"""Characters of a message of the Hub that are shown."""
CARD_ONLY = {".gitattributes", README}
"""The files of a repository in which somebody has only begun a card on the website."""


class Manifest(Record):
    """The content of lineage.json: where a published folder comes from."""

    kind: Kind
    origin: str
    """A hash of spec, generator and seed; no two different runs share it."""
    spec: str | None = None
    """The task spec's digest."""
    dataset: PublishedDataset | None = None
    """Of a model: the dataset that it was trained on, if that is published."""
    repository: str | None = None
    """The repository that the folder was written for."""
    rows: dict[SplitName, int] = Field(default_factory=dict)
    """Of a dataset: the number of rows in each split, by ``config/split``."""
    files: dict[str, str] = Field(default_factory=dict)
    """The SHA-256 of each file."""
    made_with: dict[str, str] = Field(default_factory=dict)
    """Versions of the libraries that wrote the texts, or trained the encoder."""
    lacks: tuple[str, ...] = ()
    """In words, what the card's commands need and the folder does not hold."""
    format: Literal[1, 2] = FORMAT
    """In format 1, the last version's, ``origin`` was computed differently."""

    def write(self, folder: Path) -> None:
        """Write lineage.json into a folder."""
        write_json(folder / LINEAGE, self.model_dump(mode="json"))

    def is_of(self, run: Manifest) -> bool:
        """Return True if this folder and another one of the same kind were published by the same run."""
        if self.format == 1:
            return (self.kind, self.spec, self.repository) == (run.kind, run.spec, run.repository)
        return (self.kind, self.origin) == (run.kind, run.origin)

    @classmethod
    def read(cls, path: Path, name: str) -> Manifest:
        """Read lineage.json; errors name its folder or repository.

        Raises:
            HubError: it was not written by this package, or is damaged.
            OSError: it cannot be read.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValueError as error:  # pydantic's too
            problem = f"{' '.join(str(error).split()):.200}"
            raise HubError(
                f"{name}: this version cannot read its {LINEAGE} ({problem})", "publish it again with {publish()}"
            ) from error


def seal(folder: Path, record: RunRecord, manifest: Manifest) -> None:
    """Write run.json and then lineage.json, with the hashes of files, into a folder that holds everything else."""
    write_bytes(folder / "run.json", record_json(public_record(record.without_files())))
    manifest.updated(files=file_hashes(folder)).write(folder)


def file_hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each published file by its name, without the files that others may change."""
    return {name: file_digest(path) for name, path in published_files(folder).items() if name not in NOT_HASHED}


def published_files(folder: Path) -> dict[str, Path]:
    """Return all files of a folder by name, in order, without those of git and of the Hub's client."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not FOREIGN_FOLDERS & {*name.parts}:
            files[name.as_posix()] = path
    return files


def run_manifest(record: RunRecord, kind: Kind, repository: str) -> Manifest:
    """Return a manifest that identifies a run: by what its texts were made from, so that filtering again keeps it."""
    made_from: JsonValue
    if record.generate:
        made_from = public_record(record.generate.options).model_dump(mode="json")
    elif record.filter:
        made_from = {"source": record.filter.sources}
    else:
        made_from = {"trained on": record.finetune.sources if record.finetune else None}
    origin = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
    generated = record.generate or record.texts_origin().generate
    spec = generated.options.spec if generated else None
    return Manifest(kind=kind, origin=origin, spec=spec, repository=repository)


@contextmanager
def hub_errors(repository: str, remedy: str = "run again") -> Iterator[None]:
    """Turn errors of the Hub, the network and the Hub's client into `HubError`; no message holds a token."""
    try:
        with bounded_answers():
            yield
    except HubError:
        raise
    except (*NONSENSE, OddAnswerError) as error:
        raise HubError(f"{repository}: {nonsense(error)}", f"is {constants.ENDPOINT} a Hub? run again later") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        unknown = ("the Hub is in trouble", "run again later") if status >= 500 else (_message(error), "")
        problem, remedy = PROBLEMS.get(status, unknown)
        raise HubError(f"{repository}: {problem} (HTTP {status})", remedy) from error
    except OfflineModeIsEnabled as error:
        raise HubError(f"{repository}: HF_HUB_OFFLINE blocks the Hub", "unset it and run again") from error
    except ValueError as error:  # the client refuses some values itself
        raise HubError(f"{repository}: {_message(error)}") from error
    except Exception as error:  # the errors of the client's transport change with its versions
        raise HubError(f"{repository}: {_message(error)}", remedy) from error


def _message(error: BaseException) -> str:
    """Return an error's whole message on one line, with the HTTP status that caused it."""
    message = " ".join(str(error).split()) or type(error).__name__
    cause = error.__cause__
    if isinstance(cause, HfHubHTTPError) and cause.response is not None:
        message += f" (HTTP {cause.response.status_code})"
    return message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]} ..."


class Upload(Record):
    """A repository after an upload, as published.json keeps it."""

    repository: str
    address: str
    commit: str
    changed: bool
    """False if the Hub held the same files before."""
    private: bool
    card: str
    """The card that was uploaded."""


class PublishedRecord(Record):
    """published.json: what was written and uploaded of the dataset and of the model. It lies beside their folders.

    It is not part of run.json, which is published itself. Its commits are the last that changed a repository.
    """

    dataset: Upload | None = None
    """The last upload of the dataset."""
    model: Upload | None = None
    sealed: dict[Kind, str] = Field(default_factory=dict)
    """The SHA-256 of each folder's lineage.json, which holds those of its other files."""

    @classmethod
    def read(cls, folder: Path) -> PublishedRecord:
        """Return the content of a folder's published.json; nothing if it is missing or damaged."""
        with contextlib.suppress(OSError, ValueError):
            return cls.model_validate_json((folder / PUBLISHED).read_bytes())
        return cls()

    def seal(self, folder: Path, kind: Kind, *, is_written: bool) -> PublishedRecord:
        """Write published.json, and return it.

        Args:
            folder: holds published.json and the folders for the Hub.
            kind: which of these folders is concerned.
            is_written: True records the digest of the folder's lineage.json; False removes an earlier one.
        """
        sealed = {each: digest for each, digest in self.sealed.items() if each != kind}
        if is_written:
            sealed[kind] = file_digest(folder / kind / LINEAGE)
        record = self.updated(sealed=sealed)
        record._save(folder)
        return record

    def last(self, kind: Kind, repository: str) -> Upload | None:
        """Return the last upload of a kind, if it went to this repository."""
        upload = self.dataset if kind == "dataset" else self.model
        return upload if upload and upload.repository == repository else None

    def write(self, folder: Path, kind: Kind, upload: Upload) -> None:
        """Write a folder's published.json with a new upload.

        An upload that changed nothing keeps the commit of the one before. The newest commit on the Hub may be another
        one, in which people edited the card.
        """
        last = self.last(kind, upload.repository)
        if last and not upload.changed:
            upload = upload.updated(commit=last.commit)
        self.updated(**{kind: upload})._save(folder)

    def _save(self, folder: Path) -> None:
        write_json(folder / PUBLISHED, self.model_dump(mode="json", exclude_none=True))


class Repository:
    """A repository on the Hub, ``user/name``; it may not exist yet. If it is private, only its owner can see it."""

    def __init__(self, name: str, kind: Kind, *, private: bool = False, api: HfApi | None = None) -> None:
        self.name = name
        self.kind = kind
        self.private = private
        self.api = api or HfApi()
        self.replaceable: Manifest | None = None
        """Files that are there now and that an upload deletes unless it writes them again."""
        self.last_commit: str | None = None
        """The commit that was read last. An upload refuses to overwrite a later one."""

    def card(self) -> Path | None:
        """Return a copy of the card on the Hub; None if the repository belongs to another run."""
        return self.fetch(README) if self.replaceable and self.replaceable.origin else None

    def fetch(self, file: str) -> Path | None:
        """Return a copy of a file as it is on the Hub now; None if it does not exist."""
        with hub_errors(self.name):
            try:
                commit = self.api.repo_info(self.name, repo_type=self.kind).sha
                path = Path(self.api.hf_hub_download(self.name, file, repo_type=self.kind, revision=commit))
                self.last_commit = commit
                return path
            except LocalEntryNotFoundError:  # a subclass of EntryNotFoundError: the Hub could not be reached
                raise
            except (EntryNotFoundError, RepositoryNotFoundError):
                return None

    def files(self) -> list[str] | None:
        """Return the names of the files on the Hub; None if the repository does not exist."""
        with hub_errors(self.name):
            try:
                return self.api.list_repo_files(self.name, repo_type=self.kind)
            except RepositoryNotFoundError:
                return None

    def check(self, run: Manifest, *, force: bool = False) -> None:
        """Find out which files on the Hub this run may replace.

        With ``force``, the files of any repository. A repository that holds nothing but a card counts as this run's:
        people may begin a card on the website.

        Raises:
            HubError: the repository holds the files of another run, or is public and should be private.
        """
        files = self.files()
        if files is None:
            return
        if self.private:
            with hub_errors(self.name):
                is_private = self.api.repo_info(self.name, repo_type=self.kind).private
            if not is_private:
                raise HubError(
                    f"{self.name}: exists, and is public", "make it private on the Hub, or leave {private} out"
                )
        if set(files) <= CARD_ONLY:
            self.replaceable = run.updated(files={})
            return
        lineage, manifest = self.fetch(LINEAGE), None
        with contextlib.suppress(HubError):
            manifest = Manifest.read(lineage, self.name) if lineage else None
        if manifest and manifest.is_of(run):
            self.replaceable = manifest
        elif force:
            others = dict.fromkeys(set(files) - {".gitattributes"}, "")
            self.replaceable = Manifest(kind=self.kind, origin="", files=others)
        else:
            raise HubError(
                f"{self.name}: holds files that this run did not make",
                "give another name, or {force=True} to replace them",
            )

    def upload(self, folder: Path) -> Upload:
        """Upload a folder in one commit, which deletes older files that the folder does not hold.

        If the upload is interrupted, nothing of it is visible, and the next one sends only what is missing.
        """
        local = published_files(folder)
        with hub_errors(self.name, "nothing of it is visible there; run again to continue"):
            names = self.files()
            if names is None:
                self.api.create_repo(self.name, repo_type=self.kind, private=self.private, exist_ok=True)
            old = {*self.replaceable.files} & {*(names or ())} if self.replaceable else set()
            before = self.api.repo_info(self.name, repo_type=self.kind)
            # not upload_folder, which splits many files into several commits
            self.api.create_commit(
                self.name,
                [
                    *(CommitOperationDelete(name) for name in sorted(old - {*local})),
                    *(CommitOperationAdd(name, path) for name, path in local.items()),
                ],
                repo_type=self.kind,
                commit_message=f"dino_pipeline: the {self.kind} of one run",
                parent_commit=self.last_commit or before.sha,
            )
            commit = self.last_commit = self.api.repo_info(self.name, repo_type=self.kind).sha
        return Upload(
            repository=self.name,
            address=address(self.name, self.kind, self.api.endpoint),
            commit=commit or "",
            changed=commit != before.sha,
            private=bool(before.private),
            card=(folder / README).read_text(encoding="utf-8"),
        )


def address(repository: str, kind: Kind, endpoint: str = constants.ENDPOINT) -> str:
    """Return the URL of a repository's page."""
    return f"{endpoint}/{'datasets/' if kind == 'dataset' else ''}{repository}"


def download(repository: str, kind: Kind, revision: str | None, only: list[str] | None = None) -> Path:
    """Return a local folder, named after the commit, with all files of a repository or with those in ``only``.

    Raises:
        HubError: the repository does not exist, or cannot be read.
    """
    with hub_errors(repository):
        try:
            return Path(HfApi().snapshot_download(repository, repo_type=kind, revision=revision, allow_patterns=only))
        except RepositoryNotFoundError as error:
            raise HubError(f"{repository}: this {kind} does not exist, or the token may not see it") from error


def license_of(model: str) -> str | None:
    """Return the license that a model's card names, in its folder or on the Hub; None if it is not known."""
    folder = pocket.GENERATOR if model == "pocket" else Path(model)
    name: Any = None
    if folder.is_dir():
        with contextlib.suppress(HubError, FileNotFoundError):
            name = split_card(read_card(folder / README))[0].get("license")
    else:
        # whatever keeps the Hub from answering, the license is not known
        with contextlib.suppress(Exception), bounded_answers():
            name = (HfApi().model_info(model, timeout=10).card_data or {}).get("license")
    return str(name) if name else None
