"""From a card and its weights to a repository on the Hugging Face Hub that loads without uscl-zoo.

The weights are the card's file under the name that the Hub's libraries look for, byte for byte: the
digest on the card verifies the published file as well. Everything else is printed from the card.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from . import answers, network
from .errors import CardError, DataError, HubError, one_line, reason
from .files import WriteError, check_folder, expanded, locked, open_file, written_folder
from .modelcard import FIGURE, PICTURES, config, model_card
from .records import to_plain, write_text, write_yaml
from .segmentation.model import card_of, load_outliner
from .segmentation.networks import config_of
from .zoo import checkpoint, licences, weights_cache
from .zoo.card import Card, licences_of
from .zoo.catalogue import card_named
from .zoo.hub import HUB_FILE

CONFIG, README = answers.CONFIG, "README.md"


@dataclass(frozen=True)
class Published:
    """A repository that was, or in a dry run would be, pushed; as text, what to do next.

    Attributes:
        name: of the card.
        repo: `namespace/name` on the Hub.
        files: sizes in bytes by name.
        folder: with the files; None once they are on the Hub and the folder was a temporary one.
        commit: to pin, 40 hexadecimal digits; None in a dry run.
        model: whether it outlines, and is loaded from there by its name.
    """

    name: str
    repo: str
    files: dict[str, int]
    folder: Path | None
    commit: str | None

    model: bool = False

    def __str__(self) -> str:
        if self.commit is None:
            rows = [f"  {size:>12,}  {name}" for name, size in self.files.items()]
            return "\n".join([f"{self.folder}: would be pushed to {self.repo}", *rows])
        if self.model:
            return (
                f"{self.repo}: published at {self.commit}; next: uscl predict "
                f"hf-hub:{self.repo}@{self.commit} FILES..."
            )
        return (
            f"{self.repo}: published at {self.commit}; pin it on the card ({self.name}.yaml), "
            f"under weights:\n  hub_repo: {self.repo}\n  revision: {self.commit}"
        )


def publish(
    name: str,
    namespace: str,
    dry_run: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
    folder: str | Path | None = None,
    licence: str | None = None,
) -> Published:
    """Push a checkpoint to `namespace/name` on the Hub, in one commit.

    What is there already is updated; where nothing has changed, nothing is committed.

    Args:
        name: of the checkpoint or model, or the folder of a fine-tuned model.
        namespace: user or organisation on the Hub.
        dry_run: write the folder only.
        token: with the right to write; that of `HF_TOKEN` or `hf auth login` when None.
        endpoint: of the Hub; `HF_ENDPOINT` or huggingface.co when None.
        folder: to write to, and to keep; a temporary one when None.
        licence: of the weights, as an SPDX identifier, where the card states none.

    Returns:
        What was pushed and the commit to pin; its text says which keys of the card to set.

    Raises:
        HubError: if the Hub cannot be reached, or the token may not write there.
        CardError: if the card states no licence and none is given, or another.
        DataError: if the namespace is none, the folder is not empty, what is to be published is a
            link, or the licence is looser than what the weights came of allows.
        WeightsNotFoundError: if the weights are not in reach.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}", namespace):
        raise DataError(f"{namespace}: should be a user or organisation on the Hub, as `me`")
    card = _licensed(_find(name)[0], licence)
    repo = f"{namespace}/{card.name}"
    outlines = card.task in answers.OUTLINING
    temporary = Path(tempfile.mkdtemp(prefix="uscl-publish-")) if folder is None else None
    try:
        where = temporary / card.name if temporary else Path(folder or "")
        built = build(name, where, repo, licence)
        files = {path.name: path.stat().st_size for path in sorted(built.iterdir())}
        if dry_run:
            temporary = None
            return Published(card.name, repo, files, built, None, outlines)
        commit = _push(repo, built, card, token, endpoint)
        kept = built if temporary is None else None
        return Published(card.name, repo, files, kept, commit, outlines)
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def build(
    name: str, folder: str | Path, repo: str | None = None, licence: str | None = None
) -> Path:
    """Write the files of a Hub repository, all or none.

    Of whom the images are is not among them: neither the names of subjects nor a picture of theirs.

    Args:
        name: of the checkpoint or model, or the folder of a fine-tuned model.
        folder: to write to; made, with its parents. It has to be empty.
        repo: `namespace/name`, for the examples in the model card.
        licence: as for `publish`.

    Returns:
        The folder, with `model.safetensors`, `config.json`, `README.md` and a figure; the
        fingerprints of the training data, where the card has any; and, of a fine-tuned model, what
        `uscl predict` takes.

    Raises:
        CardError: if the card states no licence and none is given: nobody could use what is
            published; or if another is given.
        DataError: if the folder is not empty, or cannot be written, what is to be published is a
            link, or the licence is looser than what the weights came of allows.
        WeightsNotFoundError: if the weights are not in reach.
        DigestError: if they are not the card's.
        CheckpointError: if they are not the architecture's.
    """
    card, tuned = _find(name)
    card = _licensed(card, licence)
    folder = check_folder(folder).absolute()
    if tuned is not None and card.task in answers.OUTLINING:
        return _build_outliner(card, tuned, folder, repo)
    how = None if tuned is None else _answers(card, tuned)
    located = weights_cache.locate(card, folder=tuned)
    checkpoint.check_file(located.path, card.architecture, len(card.classes))
    # and what a call that was killed left beside it is taken away
    with locked(folder.parent, folder.name), written_folder(folder) as partial:
        _copy_weights(located.path, partial / HUB_FILE)
        weights_cache.verify(partial / HUB_FILE, card)
        write_text(partial / CONFIG, json.dumps(config(card), indent=2) + "\n")
        write_text(partial / README, model_card(card, repo or f"NAMESPACE/{card.name}"))
        for beside in (weights_cache.corpus_of(card, tuned), weights_cache.licence_of(card, tuned)):
            if beside is not None:
                _copy(beside, partial / beside.name)
        if tuned is None:
            _draw(card, partial / FIGURE)
        else:
            # the confusion matrix or its like, and none of the pictures of patients
            picture, _ = PICTURES[card.task]
            _copy_picture(tuned / picture, partial / picture)
            _write_answering(card, how, tuned, partial)
    return folder


def copy_model(tuned: Path, folder: Path) -> None:
    """Copy what answers of a classifier's folder, for others to see: no picture, and no subject.

    Args:
        tuned: folder of `uscl finetune`.
        folder: to write to; made.

    Raises:
        UsclError: as `build`, but for a licence that is not stated.
    """
    card, _ = answers.read_model(tuned)
    how = _answers(card, tuned)
    folder.mkdir(parents=True)
    _copy_weights(tuned / card.weights.file, folder / card.weights.file)
    weights_cache.verify(folder / card.weights.file, card)
    write_text(folder / CONFIG, json.dumps(config(card), indent=2) + "\n")
    _write_answering(card, how, tuned, folder)


def _answers(card: Card, tuned: Path) -> answers.Answers | None:
    for part in (card.weights.file, answers.ANSWERS):
        _refuse_link(tuned / part)
    # what the one door refuses is not for others either
    return network.load(tuned, "cpu").answers


def _write_answering(card: Card, how: answers.Answers | None, tuned: Path, folder: Path) -> None:
    # whom the images show is nobody's business
    nameless = replace(card, training=replace(card.training, held_out_subjects=()))
    write_yaml(folder / f"{card.name}.yaml", nameless)
    _copy(tuned / answers.STATISTICS, folder / answers.STATISTICS)
    # as it was read: a key that is there twice says another thing to people
    said = json.dumps(to_plain(how), indent=1, ensure_ascii=False)
    write_text(folder / answers.ANSWERS, said)


def _build_outliner(card: Card, tuned: Path, folder: Path, repo: str | None) -> Path:
    """The same of a model that outlines, which has no card but its `predict.json`."""
    for part in (HUB_FILE, answers.STATISTICS):
        _refuse_link(tuned / part)
    # what the one door refuses is not for others either
    model = load_outliner(tuned, "cpu")
    said = replace(
        model.said,
        licence=card.licence,
        training=replace(model.said.training, held_out_subjects=()),
    )
    picture, _ = PICTURES[card.task]
    with locked(folder.parent, folder.name), written_folder(folder) as partial:
        _copy_weights(tuned / HUB_FILE, partial / HUB_FILE)
        weights_cache.verify(partial / HUB_FILE, card)
        if card.task == "segmentation":
            settings = config_of(model.module, said.encoder, len(said.classes))
            write_text(partial / CONFIG, json.dumps(settings, indent=2) + "\n")
        write_text(partial / README, model_card(card, repo or f"NAMESPACE/{card.name}"))
        _copy_picture(tuned / picture, partial / picture)
        _copy(tuned / answers.STATISTICS, partial / answers.STATISTICS)
        text = json.dumps(to_plain(said), indent=1, ensure_ascii=False)
        write_text(partial / answers.ANSWERS, text)
    return folder


def _licensed(card: Card, licence: str | None) -> Card:
    """The card with a licence.

    Raises:
        CardError: if there is none, or the card states another.
        DataError: if it is looser than what the weights came of allows.
    """
    if licence is None:
        if card.licence is None:
            raise CardError(
                f"{card.name}: its card states no licence, so others may not use it; ask the "
                "authors of the weights, and give it (`licence`), or write it on the card"
            )
        return card
    if card.licence not in (None, licence):
        raise CardError(
            f"{card.name}: its card states {card.licence}, not {licence}; change it there, if it "
            "is yours to change"
        )
    if fault := licences.fault(licence, licences_of(card.training)):
        raise DataError(f"`licence` {licence}: {fault}")
    return replace(card, licence=licence)


def _copy(source: Path, target: Path) -> None:
    """Copy a file that will be public: that one, and not what a link in its place leads to."""
    _refuse_link(source)
    _copy_weights(source, target)


def _copy_weights(source: Path, target: Path) -> None:
    """Copy a file; the Hub's cache has links in it, and what they lead to is verified."""
    try:
        with open_file(source) as stream:
            with _writing(target):
                copied = target.open("xb", buffering=0)
            with copied:
                while chunk := stream.read(1 << 20):
                    with _writing(target):
                        copied.write(chunk)
    except WriteError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{source}: is not there; copy the model's folder again") from error
    except OSError as error:
        raise DataError(f"{source}: cannot be copied ({reason(error)})") from error


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Name the copy in what goes wrong with it, not the file that is read, as `shutil` would."""
    try:
        yield
    except OSError as error:
        raise WriteError(target, reason(error)) from error


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise DataError(
            f"{path}: is a link, and what it leads to is not published; put a file there"
        )


def _copy_picture(source: Path, target: Path) -> None:
    """Copy the pixels of a picture: its metadata could say anything."""
    _refuse_link(source)
    try:
        with open_file(source) as stream, Image.open(stream, formats=["PNG"]) as picture:
            pixels = Image.frombytes("RGB", picture.size, picture.convert("RGB").tobytes())
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{source}: is no picture that can be read ({reason(error)})") from error
    pixels.save(target, "PNG", optimize=True)


def _find(name: str) -> tuple[Card, Path | None]:
    """The card of a checkpoint of the zoo, or of a model's folder, and that folder."""
    folder = expanded(name)
    if answers.task_of(folder) in answers.OUTLINING:
        return card_of(folder), folder
    if (folder / answers.ANSWERS).is_file():
        card, how = answers.read_model(folder)
        answers.read_statistics(folder / answers.STATISTICS, how)
        return card, folder
    return card_named(name), None


def _draw(card: Card, path: Path) -> None:
    # here, since the command line offers publishing without needing to draw
    from . import demo

    with contextlib.redirect_stdout(io.StringIO()):
        demo.run(card.name, None, path)


# ------------------------------------------------------------------------------------- the Hub


def _push(repo: str, folder: Path, card: Card, token: str | None, endpoint: str | None) -> str:
    api = HfApi(endpoint=endpoint, token=token)
    try:
        api.create_repo(repo, exist_ok=True)
        pushed = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message=one_line(f"{card.name}: {card.summary}"),
        )
    except HfHubHTTPError as error:
        raise _refused(repo, error) from error
    # of the client's transport, which was requests, then httpx, each with errors of its own
    except Exception as error:
        raise HubError(
            f"{repo}: {api.endpoint or constants.ENDPOINT} cannot be reached "
            f"({_first_line(error)}); connect and try again, nothing was published"
        ) from error
    return str(pushed.oid)


def _refused(repo: str, error: HfHubHTTPError) -> HubError:
    status = error.response.status_code if error.response is not None else None
    advice = {
        401: "you are not logged in, or the token is wrong: run `hf auth login` or set HF_TOKEN",
        403: "the token may not write there: name your own namespace, or use a token that may",
        404: "there is no such namespace, or it is not yours to write to",
    }.get(status or 0, "try again later")
    return HubError(f"{repo}: the Hub refused it ({_first_line(error)}); {advice}")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
