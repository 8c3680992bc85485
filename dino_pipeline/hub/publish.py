"""The publish stage: what of a run goes where, under which licence; first as folders, then on the Hub."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dino_pipeline.errors import OptionError, RunError
from dino_pipeline.files import write_json
from dino_pipeline.hub.card import README, Kept
from dino_pipeline.hub.dataset import write_dataset
from dino_pipeline.hub.dataset_card import Again, Publication
from dino_pipeline.hub.folder import write_folder
from dino_pipeline.hub.licenses import GeneratorLicense, license_of
from dino_pipeline.hub.manifest import origin_of
from dino_pipeline.hub.model import ModelPublication, write_model
from dino_pipeline.hub.upload import Kind, Repository
from dino_pipeline.report.page import Report
from dino_pipeline.run import Run
from dino_pipeline.training.corpus import Source
from dino_pipeline.training.training_texts import origin_of_texts


@dataclass(frozen=True)
class Request:
    """What a user asks for."""

    repo: str
    """The dataset's, ``user/name``."""
    model_repo: str | None = None
    """None: the name is the dataset's."""
    what: Literal["dataset", "model", "both"] | None = None
    """None: both, where an encoder is trained."""
    license: str | None = None
    no_raw: bool = False
    widgets: bool = False
    private: bool = False
    dry_run: bool = False
    force: bool = False

    def name(self, kind: Kind) -> str:
        """Return the repository that a kind goes to."""
        return (self.model_repo if kind == "model" else None) or self.repo


def publish(run: Run, request: Request, again: Again, report: Callable[[], Report], say: Callable[[str], None]) -> None:
    """Write a run's dataset and encoder as folders and, unless it is a rehearsal, upload them.

    Args:
        run: whose.
        request: what is asked for.
        again: how the dataset is made again.
        report: writes the run's report.
        say: is told what is done.

    Raises:
        HubError: the Hub, or what stands there, does not allow it.
        OptionError: the generator may restrict what is done with its texts, and no licence is named.
        OutputError: a folder cannot be written.
        RunError: what is to be published is not there, or does not belong together.
    """
    places = {kind: Repository(request.name(kind), kind, private=request.private) for kind in _kinds(run, request)}
    own = _learnt_from_it(run, strict="model" in places)
    for place in () if request.dry_run else places.values():  # before anything is written
        place.check(origin_of(run.records()), force=request.force)
    dataset = None
    if "dataset" in places:
        publication = _publication(run, request, again, with_model="model" in places, own=own)
        written = report()
        dataset = put(run, places["dataset"], request, lambda *to: write_dataset(run, publication, written, *to), say)
    if "model" in places:
        of_model = _model_publication(run, request, dataset, own=own)
        put(run, places["model"], request, lambda *to: write_model(run, of_model, *to), say)


def _kinds(run: Run, request: Request) -> list[Kind]:
    """Return what to publish.

    Raises:
        RunError: it is not there.
    """
    trained = run.stage("finetune").get("status") == "done"
    what = request.what or ("both" if trained or request.model_repo else "dataset")
    if what != "model" and run.stage("filter").get("status") != "done":
        remedy = "publish --what model" if trained else "run dino filter first"
        raise RunError(f"{run.path}: no filtered data is there; {remedy}")
    if what != "dataset" and not (trained and run.model.is_dir()):
        raise RunError(f"{run.path}: no encoder is trained there; run dino finetune, or publish --what dataset")
    return ["dataset", "model"] if what == "both" else [what]


def _learnt_from_it(run: Run, *, strict: bool) -> bool:
    """Say whether the encoder was trained on what the run's dataset is now.

    Raises:
        RunError: it was trained on what the dataset was before, and that matters.
    """
    trained = run.stage("finetune")
    if not trained.get("origin", {}).get("own"):
        return False
    same = run.train.exists() and trained["sources"].split("+")[0] == Source(str(run.train)).digest()
    if not same and strict:
        raise RunError(
            f"{run.path}: the encoder was trained on what the dataset was before it was filtered again; run dino "
            "finetune again, or publish --what dataset"
        )
    return same


def _publication(run: Run, request: Request, again: Again, *, with_model: bool, own: bool) -> Publication:
    """Return what the dataset is to be; the encoder that learnt from it is named, if it is or was published."""
    generator, license_ = _licenses(run.stage("generate"), run.spec_fields().get("license"), request)
    before = _published(run).get("model", {}).get("repository")
    model = request.name("model") if with_model else before
    return Publication(request.repo, license_, not request.no_raw, model if own else None, generator, again)


def _model_publication(run: Run, request: Request, dataset: Mapping[str, str] | None, *, own: bool) -> ModelPublication:
    """Return what the encoder is to be; the dataset that it learnt from is named, if it is or was published."""
    origin = origin_of_texts(run)
    before = _published(run).get("dataset", {})
    if not own:
        dataset = origin.get("dataset")
    elif dataset is None and before.get("repository") == request.repo:
        dataset = {"repository": before["repository"], "commit": before["commit"]}
    generator, license_ = _licenses(origin.get("generate") or {}, origin.get("license"), request)
    return ModelPublication(request.name("model"), license_, dataset, generator, request.widgets)


def _licenses(
    generated: Mapping[str, Any], of_spec: str | None, request: Request
) -> tuple[GeneratorLicense | None, str | None]:
    """Return the licence of the generator, if one wrote the texts, and that of what is published.

    Raises:
        OptionError: the first may restrict the second, which is not said.
    """
    model = generated.get("options", {}).get("model")
    if model is None:
        return None, request.license or of_spec
    generator = GeneratorLicense(license_of(model))
    if generator.restricts and not request.license:
        raise OptionError(
            f"the licence of the generator {model} is {generator.license or 'not known'}: it may restrict what is done "
            "with texts that it wrote; read it, and say with --license under which licence these may be published"
        )
    return generator, request.license or of_spec


def put(
    run: Run,
    place: Repository,
    request: Request,
    write: Callable[[Path, Kept], None],
    say: Callable[[str], None],
) -> dict[str, str]:
    """Write a folder and, unless it is a rehearsal, upload it; return repository and, then, commit."""
    folder = run.hub / place.kind
    before = _published(run).get(place.kind, {})
    if before.get("repository") != place.name:
        before = {}
    write_folder(folder, write, place.name, place.card(), before.get("card", ""))
    say(f"{folder}: the {place.kind} is written")
    if request.dry_run:
        return {"repository": place.name}
    uploaded = place.upload(folder)
    say(
        f"{uploaded.address}: {'is published' if uploaded.changed else 'is up to date'} (commit {uploaded.commit[:10]})"
    )
    # where nothing changed, that in which it was published, whatever people wrote into the card since
    commit = uploaded.commit if uploaded.changed else before.get("commit", uploaded.commit)
    card = (folder / README).read_text(encoding="utf-8")
    record = {**asdict(uploaded), "commit": commit, "card": card}
    write_json(run.hub / "published.json", {**_published(run), place.kind: record})
    return {"repository": place.name, "commit": commit}


def _published(run: Run) -> dict[str, Any]:
    """Return what was published of a run, by kind; it is not in run.json, which is published itself."""
    with contextlib.suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads((run.hub / "published.json").read_text(encoding="utf-8"))
        return found
    return {}
