"""Putting a folder on the Hub: one commit, nothing of others' overwritten, and errors that say what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from dino_pipeline.errors import HubError, first_line
from dino_pipeline.hub.manifest import Manifest, files_of
from dino_pipeline.run import LINEAGE

Kind = Literal["dataset", "model"]
REMEDIES = {
    401: "the Hub does not know who you are; log in with `hf auth login`, or set HF_TOKEN",
    402: "the account's storage is used up; make room, or publish --no-raw",
    403: "the token has no right to write there; use one that has, or another name",
    404: "no such user or organisation, or the token may not see it; check the name",
    409: "somebody else changed it at the same time, or the name is taken; run again",
    413: "the Hub finds it too large; publish --no-raw",
    429: "the Hub asks to go slower; wait a little and run again",
}


@dataclass(frozen=True)
class Published:
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
        said = REMEDIES.get(status, "the Hub is in trouble; run again later" if status >= 500 else first_line(error))
        raise HubError(f"{repository}: {said} (HTTP {status})") from error
    except OfflineModeIsEnabled as error:
        raise HubError(f"{repository}: HF_HUB_OFFLINE keeps the Hub out of reach; unset it and run again") from error
    except Exception as error:  # the library's transport has its own, which change with its versions
        raise HubError(f"{repository}: {first_line(error)}; {remedy}") from error


class Repository:
    """A repository on the Hub."""

    def __init__(self, name: str, kind: Kind, api: HfApi | None = None) -> None:
        self.name = name
        self.kind = kind
        self.api = api or HfApi()

    def read(self, file: str) -> str | None:
        """Return a text file of the repository as it is now; None if there is none."""
        with errors(self.name):
            try:
                now = self.api.repo_info(self.name, repo_type=self.kind).sha
                path = self.api.hf_hub_download(self.name, file, repo_type=self.kind, revision=now)
            except LocalEntryNotFoundError:  # the Hub was not reached: that is not "there is none"
                raise
            except (EntryNotFoundError, RepositoryNotFoundError):
                return None
        return Path(path).read_text(encoding="utf-8")

    def files(self) -> list[str] | None:
        """Return the names of its files; None if there is no such repository."""
        with errors(self.name):
            try:
                return self.api.list_repo_files(self.name, repo_type=self.kind)
            except RepositoryNotFoundError:
                return None

    def check(self, origin: str, *, force: bool) -> Manifest | None:
        """Return what stands there and goes where it is not made again: what this run made, or, by force, everything.

        Raises:
            HubError: it holds something else, and is not to be overwritten.
        """
        files = self.files()
        if not files or set(files) <= {".gitattributes"}:
            return None
        text = self.read(LINEAGE)
        manifest = None
        with contextlib.suppress(HubError):
            manifest = Manifest.read(text, self.name) if text else None
        if manifest and manifest.origin == origin and manifest.kind == self.kind:
            return manifest
        if not force:
            raise HubError(
                f"{self.name}: holds something that this run did not make; give another name, or --force to replace it"
            )
        return Manifest(self.kind, "", None, files=dict.fromkeys(set(files) - {".gitattributes"}, ""))

    def publish(self, folder: Path, before: Manifest | None, *, private: bool) -> Published:
        """Upload a folder in one commit; files that an earlier publication had and this has not are deleted.

        Interrupted, nothing of it is to be seen, and what was uploaded is not uploaded again.
        """
        here = {path.relative_to(folder).as_posix() for path in files_of(folder)}
        gone = sorted(set(before.files) - here) if before else []
        with errors(self.name, "nothing of it is to be seen there; run again, and it goes on"):
            if self.files() is None:
                self.api.create_repo(self.name, repo_type=self.kind, private=private, exist_ok=True)
            there = self.api.repo_info(self.name, repo_type=self.kind)
            earlier = there.sha
            self.api.upload_folder(
                repo_id=self.name,
                folder_path=folder,
                repo_type=self.kind,
                commit_message=f"dino_pipeline: the {self.kind} of one run",
                delete_patterns=gone or None,
                parent_commit=earlier,
                ignore_patterns=[".cache/**"],
            )
            commit = self.api.repo_info(self.name, repo_type=self.kind).sha
        page = address(self.name, self.kind, self.api.endpoint)
        return Published(self.name, page, commit or "", commit != earlier, bool(there.private))


def address(repository: str, kind: Kind, endpoint: str = constants.ENDPOINT) -> str:
    """Return a repository's page."""
    return f"{endpoint}/{'datasets/' if kind == 'dataset' else ''}{repository}"


def download(repository: str, kind: Kind, revision: str | None) -> Path:
    """Return a folder with all files of a repository.

    Raises:
        HubError: there is none, or it cannot be had.
    """
    with errors(repository):
        return Path(snapshot_download(repository, repo_type=kind, revision=revision))
