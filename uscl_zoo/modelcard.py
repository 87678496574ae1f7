"""What a card says, as the files of a Hub repository that are read by others: README and config.

Whatever a card holds is text here: what would be markup of Markdown or HTML is escaped, and links
are those of the web. Names of subjects are left out.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from huggingface_hub import EvalResult, ModelCardData

from .answers import OUTLINING
from .errors import one_line
from .zoo import licences
from .zoo.card import Card, Metric, Source, licences_of
from .zoo.descriptions import origin_in_words, standing
from .zoo.hub import HUB_FILE

T = TypeVar("T")

#: The figure of a backbone, and of a fine-tuned model.
FIGURE, CONFUSION, ROC, AGREEMENT = "similarity.png", "confusion.png", "roc.png", "agreement.png"
_RELIABLE = "reliability.png", "How often pixels and regions are right, by their probability"
#: The picture of a fine-tuned model that shows no patient, and what it is, by `Card.task`.
PICTURES = {
    None: (CONFUSION, "Confusion matrix"),
    "multilabel": (ROC, "ROC curves of the labels"),
    "regression": (AGREEMENT, "What was said against what is right, and the differences"),
    "segmentation": _RELIABLE,
    "detection": _RELIABLE,
}

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

#: In the Hub's words, by `Card.task`: what loads it, where that is not timm.
_LIBRARIES = {"segmentation": "segmentation-models-pytorch", "detection": "uscl-zoo"}

# What Markdown, HTML and the mathematics of the Hub make something of.
_MARKUP = re.compile(r"[\\`*\[\]<>|#!~$&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
# What makes a line the beginning of a list, a heading or a rule.
_BEGINNING = re.compile(r"^([-+=>]|\d+(?=[.)]))")
# Keys of a card whose text stands in code or in a link, which have escapes of their own.
_CODE = ("command", "url", "file", "licence_file", "sha256", "recipe")


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
    raw, card = card, _plain(card)
    training = card.training
    sections = [
        f"---\n{_metadata(raw)}\n---",
        f"# {card.name}",
        *(_classifier(card) if card.classes else _backbone(card)),
        f"## Use\n\n{_use(raw, repo)}",
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
        recipe = json.dumps(raw.training.recipe, indent=1, default=str)
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


def _use(card: Card, repo: str) -> str:
    if card.task in OUTLINING:
        return _outlining(card, repo)
    return _answering(repo) if card.classes else _usage(card, repo)


def _backbone(card: Card) -> tuple[str, ...]:
    return (
        f"{card.summary}. A {_spoken(card.architecture)} that embeds an image in "
        f"{_WIDTHS[card.architecture]:,} numbers; it has no classifier.",
        f"![Cosine similarity of the frames of one clip]({FIGURE})",
        f"The frames of a *synthetic* lung clip as `{card.name}` and the same network with random "
        f"weights see them; `uscl demo {card.name}` draws it.",
    )


def _classifier(card: Card) -> tuple[str, ...]:
    names = ", ".join(card.classes)
    says = {
        None: f"with a classifier; its classes are {names}",
        "multilabel": f"that gives each of several labels a logit of its own: {names}",
        "regression": f"whose one output is a number: {names}",
        "segmentation": f"with a decoder that gives each pixel a class: {names}, or none",
        "detection": f"with a pyramid and heads that find each of: {names}",
    }
    picture, alt = PICTURES[card.task]
    return (
        f"{card.summary}. A {_spoken(card.architecture)} {says[card.task]}.",
        f"![{alt}]({picture})",
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


def _outlining(card: Card, repo: str) -> str:
    alone = f"""\
With segmentation_models_pytorch and timm alone, to logits at the size of the input, of which the
first are the background's:

```python
import segmentation_models_pytorch as smp

network = smp.from_pretrained("{repo}").eval()
```

"""
    return f"""\
{alone if card.task == "segmentation" else ""}\
With uscl-zoo, which reads videos and DICOM, calibrates, and says "none":

```sh
uscl predict hf-hub:{repo} FILES... -o FOLDER
```

```python
import uscl_zoo

found = uscl_zoo.outline("hf-hub:{repo}", ["still.png", "clip.mp4"])
```"""


def hub_licence(licence: str) -> str:
    """A licence as the Hub's metadata name it: `other` where the Hub does not know it."""
    return licence.lower() if _HUB_LICENCES.fullmatch(licence.lower()) else "other"


def _metadata(card: Card) -> str:
    assert card.licence is not None
    licence, known = card.licence.lower(), hub_licence(card.licence) != "other"
    # other models' figures and differences are no results of this one; the table below has them
    measured = [m for m in card.metrics if m.compared_with is None and m.model is None]
    data = ModelCardData(
        model_name=card.name,
        license=hub_licence(card.licence),
        license_name=None if known else re.sub(r"[^a-z0-9.-]+", "-", licence),
        library_name=_LIBRARIES.get(card.task or "", "timm"),
        pipeline_tag=_pipeline(card) if card.classes else "image-feature-extraction",
        tags=_tags(card),
        eval_results=[_result(metric, _pipeline(card)) for metric in measured] or None,
    )
    return data.to_yaml()


def _pipeline(card: Card) -> str:
    """What the Hub calls it; of numbers that are told of images it knows nothing."""
    names = {
        "regression": "other",
        "segmentation": "image-segmentation",
        "detection": "object-detection",
    }
    return names.get(card.task or "", "image-classification")


def _tags(card: Card) -> list[str]:
    if card.task in OUTLINING:
        return ["uscl-zoo", *_FIELD]
    return ["timm", "transformers", "uscl-zoo", *(_FIELD if card.is_uscl else ())]


def _result(metric: Metric, task: str) -> EvalResult:
    # as others show them: no name may turn the rest of a line round
    unit = one_line(metric.unit)
    details: dict[str, object] = {"unit": unit, "protocol": one_line(metric.protocol)}
    if metric.interval is not None:
        details |= {"interval": list(metric.interval), "interval_kind": metric.interval_kind}
    return EvalResult(
        task_type=task,
        dataset_name=one_line(metric.dataset),
        dataset_type=_slug(metric.dataset),
        metric_type=_slug(metric.metric),
        metric_name=f"{one_line(metric.metric)}, by {unit}",
        metric_value=metric.value,
        metric_args=details,
    )


def plain(text: str) -> str:
    """A text that Markdown shows as it is, in one line."""
    text = _MARKUP.sub(lambda match: f"\\{match[0]}", one_line(" ".join(text.split())))
    # no entity either, of which a backslash makes nothing in HTML
    text = text.replace("\\<", "&lt;").replace("\\>", "&gt;").replace("\\&", "&amp;")
    return _BEGINNING.sub(
        lambda match: f"\\{match[0]}" if not match[0][0].isdigit() else f"{match[0]}\\", text
    )


def _plain(value: T, key: str = "") -> T:
    """A card, or what is in it, with its texts as `plain` has them."""
    made: Any = value
    if key in _CODE:
        return value
    if isinstance(value, str):
        made = plain(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        made = dataclasses.replace(value, **{k: _plain(v, k) for k, v in fields.items()})
    elif isinstance(value, tuple):
        made = tuple(_plain(item) for item in value)
    elif isinstance(value, dict):
        made = {_plain(k): _plain(v) for k, v in value.items()}
    return made  # type: ignore[no-any-return]


def _code(text: str) -> str:
    """A text as code, in a line; also of a table, in which a bar would end the cell."""
    text = one_line(text)
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    space = " " if longest else ""
    return f"{fence}{space}{text}{space}{fence}"


def _link(url: str) -> str | None:
    """The target of a link, which is one of the web and cannot end before its end; else None."""
    try:
        scheme = urlsplit(url).scheme
    except ValueError:
        return None
    return quote(url, safe="/:?=&%#@+,;~") if scheme in ("http", "https") else None


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
    kept = f" Its text is in {_code(text)} and has to go wherever the weights go." if text else ""
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
        # how many, and not who
        count = len(training.held_out_subjects)
        lines.append(f"never trained on: the frames of {count} subjects")
    return lines


def _source(source: Source) -> str:
    name = source.name
    link = None if source.url is None else _link(source.url)
    title = f"[{name}]({link})" if link else name
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
    how = _items(f"{protocol}: {_code(command)}" for protocol, command in protocols)
    return "\n".join(lines) + f"\n\nHow they were measured, and again can be:\n\n{how}"
