"""Putting a folder on the Hub: one commit, nothing of others' overwritten, and errors that say what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from dino_pipeline.errors import HubError
from dino_pipeline.hub.card import README
from dino_pipeline.hub.manifest import Manifest, files_of
from dino_pipeline.layout import LINEAGE

Kind = Literal["dataset", "model"]
REMEDIES = {
    401: "the Hub does not know who you are; log in with `hf auth login`, or set HF_TOKEN",
    402: "the account's storage is used up; make room, or publish --no-raw",
    403: "the token has no right to write there; use one that has, or another name",
    404: "no such repository, user or organisation, or the token may not see it; check the name",
    409: "somebody else changed it at the same time, or the name is taken; run again",
    412: "somebody else changed it at the same time; run again",
    413: "the Hub finds it too large; publish --no-raw",
    429: "the Hub asks to go slower; wait a little and run again",
}


LONGEST = 600
"""Characters of what the Hub says."""
CARD_ONLY = {".gitattributes", README}


@dataclass(frozen=True)
class Uploaded:
    """What became of a repository."""

    repository: str
    address: str
    commit: str
    changed: bool
    """Whether anything had to be uploaded."""
    private: bool


@contextmanager
def errors(repository: str, remedy: str = "run again") -> Iterator[None]:
    """Turn what the Hub, the network and the library say into messages with a remedy; none holds a token."""
    try:
        yield
    except HubError:
        raise
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        said = REMEDIES.get(status, "the Hub is in trouble; run again later" if status >= 500 else _whole(error))
        raise HubError(f"{repository}: {said} (HTTP {status})") from error
    except OfflineModeIsEnabled as error:
        raise HubError(f"{repository}: HF_HUB_OFFLINE keeps the Hub out of reach; unset it and run again") from error
    except ValueError as error:  # the library finds it wrong before, or because, the Hub does
        raise HubError(f"{repository}: {_whole(error)}") from error
    except Exception as error:  # the library's transport has its own, which change with its versions
        raise HubError(f"{repository}: {_whole(error)}; {remedy}") from error


def _whole(error: BaseException) -> str:
    """Return all that an error says, on one line, with the Hub's answer that the library takes it from."""
    said = " ".join(str(error).split()) or type(error).__name__
    cause = error.__cause__
    if isinstance(cause, HfHubHTTPError) and cause.response is not None:
        said += f" (HTTP {cause.response.status_code})"
    return said if len(said) <= LONGEST else f"{said[:LONGEST]} ..."


class Repository:
    """A repository on the Hub.

    Args:
        name: ``user/name``.
        kind: what it holds.
        private: whether only its owner may see it.
        api: asks the Hub.
    """

    def __init__(self, name: str, kind: Kind, *, private: bool = False, api: HfApi | None = None) -> None:
        self.name = name
        self.kind = kind
        self.private = private
        self.api = api or HfApi()
        self.before: Manifest | None = None
        """What stands there and goes where it is not made again."""
        self.seen: str | None = None
        """The commit that was read last: nothing is published over a later one."""

    def card(self) -> Path | None:
        """Return a copy of the card that is there, if it is ours: by force, nothing of a stranger's is kept."""
        return self.fetch(README) if self.before and self.before.origin else None

    def fetch(self, file: str) -> Path | None:
        """Return a copy of a file of the repository as it is now; None if there is none."""
        with errors(self.name):
            try:
                now = self.api.repo_info(self.name, repo_type=self.kind).sha
                path = Path(self.api.hf_hub_download(self.name, file, repo_type=self.kind, revision=now))
                self.seen = now
                return path
            except LocalEntryNotFoundError:  # the Hub was not reached: that is not "there is none"
                raise
            except (EntryNotFoundError, RepositoryNotFoundError):
                return None

    def files(self) -> list[str] | None:
        """Return the names of its files; None if there is no such repository."""
        with errors(self.name):
            try:
                return self.api.list_repo_files(self.name, repo_type=self.kind)
            except RepositoryNotFoundError:
                return None

    def check(self, origin: str, *, force: bool = False) -> None:
        """Find out what stands there ``before``: what this run made, or, by force, everything.

        A card alone, as one may begin on the website, is nobody else's.

        Raises:
            HubError: it holds something else, and is not to be overwritten, or it is public and is to be private.
        """
        files = self.files()
        if files is None:
            return
        if self.private:
            with errors(self.name):
                is_private = self.api.repo_info(self.name, repo_type=self.kind).private
            if not is_private:
                raise HubError(f"{self.name}: is there, and public; make it private on the Hub, or leave --private out")
        if set(files) <= CARD_ONLY:
            self.before = Manifest(self.kind, origin, None)
            return
        lineage, manifest = self.fetch(LINEAGE), None
        with contextlib.suppress(HubError):
            manifest = Manifest.read(lineage, self.name) if lineage else None
        if manifest and manifest.origin == origin and manifest.kind == self.kind:
            self.before = manifest
        elif force:
            self.before = Manifest(self.kind, "", None, files=dict.fromkeys(set(files) - {".gitattributes"}, ""))
        else:
            raise HubError(
                f"{self.name}: holds something that this run did not make; give another name, or --force to replace it"
            )

    def upload(self, folder: Path) -> Uploaded:
        """Upload a folder in one commit; files that stood there before and are not in it are deleted.

        Interrupted, nothing of it is to be seen, and what was uploaded is not uploaded again.
        """
        here = {path.relative_to(folder).as_posix(): path for path in files_of(folder)}
        with errors(self.name, "nothing of it is to be seen there; run again, and it goes on"):
            names = self.files()
            if names is None:
                self.api.create_repo(self.name, repo_type=self.kind, private=self.private, exist_ok=True)
            gone = sorted({*self.before.files} & {*(names or ())} - {*here}) if self.before else []
            there = self.api.repo_info(self.name, repo_type=self.kind)
            earlier = there.sha
            # not upload_folder: it makes several commits of many files
            self.api.create_commit(
                self.name,
                [
                    *(CommitOperationDelete(name) for name in gone),
                    *(CommitOperationAdd(name, path) for name, path in here.items()),
                ],
                repo_type=self.kind,
                commit_message=f"dino_pipeline: the {self.kind} of one run",
                parent_commit=self.seen or earlier,
            )
            commit = self.seen = self.api.repo_info(self.name, repo_type=self.kind).sha
        page = address(self.name, self.kind, self.api.endpoint)
        return Uploaded(self.name, page, commit or "", commit != earlier, bool(there.private))


def address(repository: str, kind: Kind, endpoint: str = constants.ENDPOINT) -> str:
    """Return a repository's page."""
    return f"{endpoint}/{'datasets/' if kind == 'dataset' else ''}{repository}"


def download(repository: str, kind: Kind, revision: str | None, only: list[str] | None = None) -> Path:
    """Return a folder, named after the commit, with all files of a repository, or with some.

    Raises:
        HubError: there is none, or it cannot be had.
    """
    with errors(repository):
        try:
            return Path(HfApi().snapshot_download(repository, repo_type=kind, revision=revision, allow_patterns=only))
        except RepositoryNotFoundError as error:
            raise HubError(f"{repository}: no such {kind} is there, or the token may not see it") from error
