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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCardData, constants
from huggingface_hub.errors import HfHubHTTPError

from . import answers, checkpoint, licences, weights_cache
from .card import Card, Metric, Source, licences_of
from .catalogue import model_info
from .descriptions import origin_in_words, standing
from .errors import CardError, DataError, HubError
from .files import check_folder, expanded, written_folder
from .hub import HUB_FILE
from .records import write_text, write_yaml

CONFIG, README, FIGURE = answers.CONFIG, "README.md", "similarity.png"
#: The figure of a fine-tuned model.
CONFUSION = "confusion.png"

#: Channels of the last stage, which are the numbers of an embedding.
_WIDTHS = {"resnet18": 512, "resnet50": 2048}

#: SPDX identifiers that are the Hub's own, once in small letters.
_HUB_LICENCES = re.compile(
    r"mit|apache-2\.0|bsd-[23]-clause|cc0-1\.0|cc-by(-nc)?(-sa|-nd)?-[234]\.0|openrail"
)

#: Tags of what was trained on ultrasound.
_FIELD = ("ultrasound", "medical-imaging")

_METHOD = (
    "Chen, Zhang et al., USCL: Pretraining Deep Ultrasound Image Diagnosis Model Through Video "
    "Contrastive Representation Learning, MICCAI 2021, doi 10.1007/978-3-030-87237-3_60"
)


@dataclass(frozen=True)
class Published:
    """A repository that was, or in a dry run would be, pushed; as text, what to do next.

    Attributes:
        name: of the card.
        repo: `namespace/name` on the Hub.
        files: sizes in bytes by name.
        folder: with the files; None once they are on the Hub and the folder was a temporary one.
        commit: to pin, 40 hexadecimal digits; None in a dry run.
    """

    name: str
    repo: str
    files: dict[str, int]
    folder: Path | None
    commit: str | None

    def __str__(self) -> str:
        if self.commit is None:
            rows = [f"  {size:>12,}  {name}" for name, size in self.files.items()]
            return "\n".join([f"{self.folder}: would be pushed to {self.repo}", *rows])
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

    Returns:
        What was pushed and the commit to pin; its text says which keys of the card to set.

    Raises:
        HubError: if the Hub cannot be reached, or the token may not write there.
        CardError: if the card states no licence.
        DataError: if the namespace is none, or the folder is not empty.
        WeightsNotFoundError: if the weights are not in reach.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}", namespace):
        raise DataError(f"--to {namespace}: should be a user or organisation on the Hub, as `me`")
    card, _ = _find(name)
    repo = f"{namespace}/{card.name}"
    temporary = Path(tempfile.mkdtemp(prefix="uscl-publish-")) if folder is None else None
    try:
        built = build(name, temporary / card.name if temporary else Path(folder or ""), repo)
        files = {path.name: path.stat().st_size for path in sorted(built.iterdir())}
        if dry_run:
            temporary = None
            return Published(card.name, repo, files, built, None)
        commit = _push(repo, built, card, token, endpoint)
        return Published(card.name, repo, files, built if temporary is None else None, commit)
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def build(name: str, folder: str | Path, repo: str | None = None) -> Path:
    """Write the files of a Hub repository, all or none.

    Args:
        name: of the checkpoint or model, or the folder of a fine-tuned model.
        folder: to write to; made, with its parents. It has to be empty.
        repo: `namespace/name`, for the examples in the model card.

    Returns:
        The folder, with `model.safetensors`, `config.json`, `README.md` and a figure; the
        fingerprints of the training data, where the card has any; and, of a fine-tuned model, what
        `uscl predict` takes.

    Raises:
        CardError: if the card states no licence: nobody could use what is published.
        DataError: if the folder is not empty, or cannot be written.
        WeightsNotFoundError: if the weights are not in reach.
        DigestError: if they are not the card's.
        CheckpointError: if they are not the architecture's.
    """
    card, tuned = _find(name)
    if card.licence is None:
        raise CardError(
            f"{card.name}: its card states no licence, so others may not use it; ask the authors "
            "of the weights, and set `licence` on the card"
        )
    folder = check_folder(folder)
    located = weights_cache.locate(card, folder=tuned)
    checkpoint.check_file(located.path, card.architecture, len(card.classes))
    with written_folder(folder) as partial:
        shutil.copyfile(located.path, partial / HUB_FILE)
        weights_cache.verify(partial / HUB_FILE, card)
        write_text(partial / CONFIG, json.dumps(config(card), indent=2) + "\n")
        write_text(partial / README, model_card(card, repo or f"NAMESPACE/{card.name}"))
        for beside in (weights_cache.corpus_of(card, tuned), weights_cache.licence_of(card, tuned)):
            if beside is not None:
                shutil.copyfile(beside, partial / beside.name)
        if tuned is None:
            _draw(card, partial / FIGURE)
        else:
            # the confusion matrix, and none of the pictures of patients
            shutil.copyfile(tuned / CONFUSION, partial / CONFUSION)
            write_yaml(partial / f"{card.name}.yaml", card)
            for part in (answers.ANSWERS, answers.STATISTICS):
                shutil.copyfile(tuned / part, partial / part)
    return folder


def _find(name: str) -> tuple[Card, Path | None]:
    """The card of a checkpoint of the zoo, or of a model's folder, and that folder."""
    folder = expanded(name)
    if (folder / answers.ANSWERS).is_file():
        card, how = answers.read_model(folder)
        answers.read_statistics(folder / answers.STATISTICS, how)
        return card, folder
    return model_info(name), None


def config(card: Card) -> dict[str, Any]:
    """The `config.json` that timm and transformers read.

    Its keys are those of the oldest timm supported, which refuses ones it does not know inside
    `pretrained_cfg`. There is no `model_args`: transformers hands it on together with a class count
    of its own, and dies of having two.
    """
    # timm's own field for the names of the classes
    names = {"label_names": list(card.classes)} if card.classes else {}
    return {
        "architecture": card.architecture,
        "num_classes": len(card.classes),
        **names,
        "num_features": _WIDTHS[card.architecture],
        "global_pool": "avg",
        "pretrained_cfg": {
            "tag": card.tag,
            "custom_load": False,
            "input_size": list(card.input.size),
            "fixed_input_size": False,
            "pool_size": [side // 32 for side in card.input.size[1:]],
            "interpolation": card.input.interpolation,
            "crop_pct": card.input.crop_pct,
            "crop_mode": card.input.crop_mode,
            "mean": list(card.input.mean),
            "std": list(card.input.std),
            "num_classes": len(card.classes),
            "first_conv": "conv1",
            "classifier": "fc",
            "license": card.licence,
            "description": card.summary,
        },
    }


# ------------------------------------------------------------------------------ the model card


def model_card(card: Card, repo: str) -> str:
    """A card as the Hub's README: metadata in YAML, then Markdown.

    Args:
        card: to print.
        repo: `namespace/name`, for the examples.
    """
    training = card.training
    sections = [
        f"---\n{_metadata(card)}\n---",
        f"# {card.name}",
        *(_classifier(card) if card.classes else _backbone(card)),
        f"## Use\n\n{_answering(repo) if card.classes else _usage(card, repo)}",
        f"## Intended use and limits\n\n{card.intended_use}\n\n" + _items(card.limits),
        f"## Licence\n\n{_licence(card)}",
        "## Training\n\n" + _items(_training(card)),
    ]
    if training.sources:
        sections.append("## Data\n\n" + _items([_source(source) for source in training.sources]))
    if card.corpus is not None:
        sections[-1] += (
            f"\n\n`{card.corpus.file}` holds digests of the training files and perceptual hashes "
            f"of their frames: `uscl audit YOUR_DATA {card.name}` tells whether yours are there."
        )
    if training.recipe:
        recipe = json.dumps(training.recipe, indent=1, default=str)
        sections.append(
            f"<details><summary>Settings of the run</summary>\n\n```json\n{recipe}\n```\n\n"
            "</details>"
        )
    if card.metrics:
        sections.append("## Metrics\n\n" + _items(standing(card)) + "\n\n" + _metrics(card.metrics))
    sections.append(
        "## Verification\n\n"
        f"`{HUB_FILE}` has {card.weights.bytes:,} bytes and SHA-256 "
        f"`{card.weights.sha256}`; uscl-zoo loads nothing else under this name."
    )
    cited = [
        *([_METHOD] * card.is_uscl),
        *dict.fromkeys(s.citation for s in training.sources if s.citation),
    ]
    if cited:
        sections.append("## Citation\n\n" + _items(cited))
    return "\n\n".join(sections) + "\n"


def _backbone(card: Card) -> tuple[str, ...]:
    return (
        f"{card.summary}. A {_spoken(card.architecture)} that embeds an image in "
        f"{_WIDTHS[card.architecture]:,} numbers; it has no classifier.",
        f"![Cosine similarity of the frames of one clip]({FIGURE})",
        f"The frames of a *synthetic* lung clip as `{card.name}` and the same network with random "
        f"weights see them; `uscl demo {card.name}` draws it.",
    )


def _classifier(card: Card) -> tuple[str, ...]:
    return (
        f"{card.summary}. A {_spoken(card.architecture)} with a classifier; its classes are "
        f"{', '.join(card.classes)}.",
        f"![Confusion matrix]({CONFUSION})",
        "What it says of held-out data that neither trained nor chose it.",
    )


def _answering(repo: str) -> str:
    return f"""\
```python
import timm

model = timm.create_model("hf-hub:{repo}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
logits = model(transform(image)[None])  # image: a Pillow image in RGB
```

With uscl-zoo, which reads videos and DICOM, calibrates, and says when it cannot tell:

```sh
hf download {repo} --local-dir MODEL
uscl predict MODEL FILES... -o answers.csv
```"""


def _metadata(card: Card) -> str:
    assert card.licence is not None
    licence = card.licence.lower()
    known = _HUB_LICENCES.fullmatch(licence) is not None
    # other models' figures and differences are no results of this one; the table below has them
    measured = [m for m in card.metrics if m.compared_with is None and m.model is None]
    data = ModelCardData(
        model_name=card.name,
        license=licence if known else "other",
        license_name=None if known else re.sub(r"[^a-z0-9.-]+", "-", licence),
        library_name="timm",
        pipeline_tag="image-classification" if card.classes else "image-feature-extraction",
        tags=["timm", "transformers", "uscl-zoo", *(_FIELD if card.is_uscl else ())],
        eval_results=[_result(metric) for metric in measured] or None,
    )
    return data.to_yaml()


def _result(metric: Metric) -> EvalResult:
    details: dict[str, object] = {"unit": metric.unit, "protocol": metric.protocol}
    if metric.interval is not None:
        details |= {"interval": list(metric.interval), "interval_kind": metric.interval_kind}
    return EvalResult(
        task_type="image-classification",
        dataset_name=metric.dataset,
        dataset_type=_slug(metric.dataset),
        metric_type=_slug(metric.metric),
        metric_name=f"{metric.metric}, by {metric.unit}",
        metric_value=metric.value,
        metric_args=details,
    )


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def _spoken(architecture: str) -> str:
    return architecture.replace("resnet", "ResNet-")


def _items(lines: Any) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _usage(card: Card, repo: str) -> str:
    return f"""\
With timm alone:

```python
import timm

model = timm.create_model("hf-hub:{repo}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
embedding = model(transform(image)[None])  # image: a Pillow image in RGB
```

Add `num_classes=3` for a classifier to fine-tune, or `features_only=True` for feature maps.

With uscl-zoo, which checks the weights' digest and reads videos and DICOM:

```python
import uscl_zoo

model = uscl_zoo.create_model("{card.name}", pretrained=True).eval()
transform = uscl_zoo.create_transform(model)
```

With transformers:

```python
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

processor = AutoImageProcessor.from_pretrained("{repo}")
embedder = AutoModel.from_pretrained("{repo}")
classifier = AutoModelForImageClassification.from_pretrained("{repo}", num_labels=3)
```"""


def _licence(card: Card) -> str:
    bound = sorted({name for name in licences_of(card.training) if name})
    data = f" What it came of is licensed under {', '.join(bound)}." if bound else ""
    text = card.weights.licence_file
    kept = f" Its text is in `{text}` and has to go wherever the weights go." if text else ""
    weights = f"The weights are licensed under {card.licence}.{kept}{data}"
    answer = licences.in_a_product(card.licence)
    return (
        f"{weights} The code of uscl-zoo is MIT.\n\n"
        f"May they go into a product? {answer[0].upper()}{answer[1:]}."
    )


def _training(card: Card) -> list[str]:
    training, shown = card.training, card.input
    lines = [
        f"method: {training.method}",
        f"input: {shown.size[1]}×{shown.size[2]} pixels, resized without keeping the aspect ratio"
        if shown.crop_mode == "squash"
        else f"input: {shown.size[1]}×{shown.size[2]} pixels, {shown.crop_mode} crop",
        f"normalisation: mean {list(shown.mean)}, std {list(shown.std)} of intensities in 0-1",
    ]
    if card.weights.converted_from is not None:
        lines.append(f"converted from: {origin_in_words(card.weights.converted_from)}")
    if training.start is not None:
        lines.append(f"began from: {origin_in_words(training.start)}")
    lines += [f"learned from: {origin_in_words(teacher)}" for teacher in training.teachers]
    if training.labels:
        lines.append(f"classes of the labelled term: {', '.join(training.labels)}")
    if training.epochs is not None:
        lines.append(f"run: {training.epochs} epochs, {training.steps} steps, seed {training.seed}")
    if training.hours is not None:
        lines.append(f"time: {training.hours} h on {training.hardware}")
    if training.code is not None:
        lines.append(f"code: {training.code}")
    if training.held_out_subjects:
        count = len(training.held_out_subjects)
        held_out = ", ".join(f"`{subject}`" for subject in training.held_out_subjects)
        lines.append(f"never trained on: the frames of {count} subjects, {held_out}")
    return lines


def _source(source: Source) -> str:
    title = f"[{source.name}]({source.url})" if source.url else source.name
    classes = ", ".join(f"{name} {count:,}" for name, count in source.classes.items())
    licences = ", ".join(f"{name} {count:,}" for name, count in source.licences.items())
    parts = [f"{title}: {source.counts}" if source.counts else title]
    if source.organs:
        parts.append(f"organs: {', '.join(source.organs)}")
    if classes:
        parts.append(f"by class: {classes}")
    if licences:
        parts.append(f"by licence: {licences}")
    return "; ".join(parts)


def _metrics(metrics: tuple[Metric, ...]) -> str:
    lines = ["| dataset | metric | unit | value | interval |", "| --- | --- | --- | --- | --- |"]
    for metric in metrics:
        signed = "+.3f" if metric.compared_with else ".3f"
        whose = f" of {metric.model}" if metric.model else ""
        against = f", difference to {metric.compared_with}" if metric.compared_with else ""
        interval = "-"
        if metric.interval is not None:
            low, high = (format(bound, signed) for bound in metric.interval)
            interval = f"{low} to {high} ({metric.interval_kind})"
        lines.append(
            f"| {metric.dataset} | {metric.metric}{whose}{against} | {metric.unit} | "
            f"{metric.value:{signed}} | {interval} |"
        )
    protocols = dict.fromkeys((metric.protocol, metric.command) for metric in metrics)
    how = _items(f"{protocol}: `{command}`" for protocol, command in protocols)
    return "\n".join(lines) + f"\n\nHow they were measured, and again can be:\n\n{how}"


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
            repo_id=repo, folder_path=folder, commit_message=f"{card.name}: {card.summary}"
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
