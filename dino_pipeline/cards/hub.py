"""How do folders reach the Hugging Face Hub and come back: in one commit, without overwriting what others made?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from dino_pipeline import pocket
from dino_pipeline.cards.card import README, read_card, split_card
from dino_pipeline.cards.manifest import Kind, Manifest, published_files
from dino_pipeline.errors import HubError
from dino_pipeline.run import LINEAGE

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


@dataclass(frozen=True)
class Upload:
    """A repository after an upload."""

    repository: str
    address: str
    commit: str
    changed: bool
    """False if the Hub held the same files before."""
    private: bool


@contextmanager
def hub_errors(repository: str, remedy: str = "run again") -> Iterator[None]:
    """Turn errors of the Hub, the network and the Hub's client into `HubError`; no message holds a token."""
    try:
        yield
    except HubError:
        raise
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


class Repository:
    """A repository on the Hub.

    Args:
        name: ``user/name``.
        kind: dataset or model.
        private: create it so that only its owner can see it.
        api: the client of the Hub.
    """

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

        A repository that holds nothing but a card counts as this run's: people may begin a card on the website.

        Args:
            run: identifies the run; see `run_manifest`.
            force: replace the files of any repository.

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
        local = {path.relative_to(folder).as_posix(): path for path in published_files(folder)}
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
        page = address(self.name, self.kind, self.api.endpoint)
        return Upload(self.name, page, commit or "", commit != before.sha, bool(before.private))


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
        with contextlib.suppress(Exception):  # whatever keeps the Hub from answering, the license is not known
            name = (HfApi().model_info(model, timeout=10).card_data or {}).get("license")
    return str(name) if name else None
