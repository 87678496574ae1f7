"""The recipe: every setting of a pretraining run, in one frozen dataclass."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from uscl_zoo.errors import CardError
from uscl_zoo.records import from_mapping, read_yaml, to_plain
from uscl_zoo.zoo.card import ARCHITECTURES

RECIPES = Path(__file__).parents[1] / "recipes"

#: Methods by the value of `Recipe.method`, named as a reader of a table would.
METHODS = {
    "uscl": "USCL",
    "simclr": "SimCLR",
    "pair": "Contrast of two frames",
    "supervised": "Cross-entropy alone",
    "moco": "MoCo v2",
    "pi": "Π-model",
    "temporal": "Temporal ensembling",
    "fixmatch": "FixMatch",
}
#: Methods that learn from labels and from agreement with themselves (`consistency.py`).
CONSISTENT = ("pi", "temporal", "fixmatch")


@dataclass(frozen=True)
class Recipe:
    """Settings of USCL pretraining; the defaults are those of the authors' released code.

    `docs/reproducing.md` sets paper, released code and these settings side by side.

    Attributes:
        method: how the two views of a video come about and which terms of the loss count. `uscl`:
            frames mixed with an anchor, both terms (released code). The rest are for comparison,
            in the same loop and on the same data. `simclr`: two augmentations of one frame,
            without labels (Chen et al., ICML 2020; a baseline of the paper). `pair`: two distinct
            frames, not mixed; its labels are those of `classes` as for `uscl`, and its packaged
            recipe names none. `supervised`: the views of `pair` and the labelled term alone (a
            baseline of the paper, whose settings we do not know). `moco`: the views of `simclr`,
            the second through an encoder that follows the first, against a queue of such keys
            (MoCo v2, Chen et al., arXiv 2003.04297; a baseline of the paper, whose settings we do
            not know). `pi`, `temporal`, `fixmatch`: the views of `simclr`, labels, and agreement of
            the views, of the first with what was said of the video before, or of the second,
            augmented as the recipe says, with what is surely said of the first, cropped and
            flipped alone (Laine & Aila, ICLR 2017; Sohn et al., NeurIPS 2020; likewise).
        architecture: timm name of the encoder.
        init: weights that the encoder begins with: None for random ones, a checkpoint of the zoo by
            name, `timm:` with a name of timm's, or a file of timm's keys. The mean and std that
            belong to them become those of the run.
        projection_dim: width of z, the output of the projection head.
        classifier_on: what the class logits are read from: `z`, the projection (released code), or
            `h`, the pooled features (how our notes have the paper's figure; unconfirmed).
        classifier_hidden: units of a hidden layer (with ReLU) between that and the logits, which
            keeps h from being pulled into the classes; 0 for none.
        classes: labels the classification term sees, in the order of its logits; None for every
            label of the store, empty for no such term. Videos with another label are trained on
            as unlabelled.
        leave_out: sources of a corpus, by key, that are neither trained on nor looked at.
        data_rate: share of the training videos used, drawn by video with `seed`; a smaller share
            is part of a larger one. The classes and the held-out videos stay.
        label_rate: share of the labelled videos, among those used, whose label is used; drawn by
            video (released code).
        sampling_power: p of sampling by label: a label is drawn with probability ∝ count^p, by
            videos, those without a label counted as one. 1 samples every video once an epoch
            (released code). Below 1 an epoch has as many samples, rare labels come more than once
            in it, each time with draws of their own, and no video comes twice in a batch.
        beta: both parameters of the Beta distribution of λ (paper, positive pair generation).
        lambdas: draws of λ a video: 1, shared by both views (released code), or 2, one a view (how
            we recall the paper's figure; unconfirmed).
        fold_lambda: take max(λ, 1 − λ), so that a view is never more anchor than frame.
        mix: `after` the augmentation of the three frames (released code), or `before` it, so that
            the two mixed views are augmented instead (how we recall the paper's figure;
            unconfirmed). Nothing is mixed but by `uscl`.
        crop_scale: area of the random crop, as a share of the frame's.
        crop_ratio: width by height of the random crop.
        flip: probability of a horizontal flip.
        brightness: factor is drawn from 1 ± this.
        contrast: factor is drawn from 1 ± this.
        saturation: factor is drawn from 1 ± this.
        hue: shift is drawn from ± this, in turns of the colour circle.
        rotation: angle is drawn from ± this, in radians, about the middle of the frame.
        gamma: intensities are raised to e to the power of a draw from ± this.
        speckle: standard deviation of multiplicative noise, a pixel of it independent of the next.
        speckle_rate: probability of speckle.
        blur: probability of a mean over 3x3 pixels.
        mean: of each channel, intensities in 0-1.
        std: of each channel, intensities in 0-1.
        temperature: τ of NT-Xent.
        contrast_weight: of NT-Xent.
        class_weight: λ_cls, the weight of the labelled term, which is a sum over both views.
        label_smoothing: share of a label that is spread over all classes.
        teachers: frozen networks to learn from, each as `init` names one.
        teacher_weight: of the sum over teachers of their term.
        teacher_term: `features`: 1 − cosine between a linear map of h and the teacher's features,
            both centred over the batch; or `similarities`: 1 − correlation between the cosines of
            h and those of the teacher's features, over the pairs of the batch; or `stages`: the
            squared distance of what leaves each stage, and of h, to what the teacher has there, as
            a share of the teacher's variance (hints, after FitNets, Romero et al., ICLR 2015), for
            an encoder of the teacher's architecture or one that can be grown from it.
        momentum: m of the encoder of `moco` that follows, θ_k ← m θ_k + (1 − m) θ_q (He et al.,
            CVPR 2020, equation 2 and section 3.2). No other method has one.
        queue: keys that `moco` contrasts with (MoCo v2 has 65,536). No other method has one.
        consistency_weight: of the agreement: w_max of `pi` and `temporal`, which counts times the
            share of labelled videos, and λ_u of `fixmatch`. No other method has one.
        consistency_ramp: share of the epochs over which the weight of `pi` and `temporal` grows.
        ensemble_momentum: α of `temporal`, how much of what was said of a video stays.
        confidence: τ of `fixmatch`: the least probability of a label that the network gives itself.
        batch_statistics: `per-view`: a forward a view, each normalised by its own batch statistics
            (released code); or `fused`: both views in one forward share them, which is another
            method, not a faster way to the same one; or `frozen`: both are normalised by what
            `init` has, which stays.
        sync_batch_norm: with several ranks, normalise each view by the statistics of all ranks'
            images, as one rank would, and not of each rank's own.
        epochs: passes in which every video is sampled once.
        batch_size: videos a step, each of which gives two views.
        smallest_batch: a last batch with fewer videos is merged into the one before it, because
            a handful of negatives makes another loss of it.
        sizes: side of the views in pixels, each with the share of all steps at which it ends, as
            [[128, 0.7], [224, 1]]; none larger than the frames of the store, from which views are
            shrunk with a filter. Empty for the store's own throughout.
        optimizer: `adam`, or `adamw`, whose decay is decoupled from the gradient.
        learning_rate: of the optimizer.
        schedule: `epochs`: constant for `constant_epochs`, then a cosine from epoch to epoch
            (released code); or `steps`: from 0 over `warmup`, then a cosine from step to step.
        constant_epochs: epochs before the cosine begins. The authors' "warm-up" is this.
        warmup: share of all steps in which the rate rises.
        final_learning_rate: where the cosine ends.
        weight_decay: on every parameter: coupled L2 with `adam`, decoupled with `adamw`.
        average: the backbone of the run is the exponential average of the weights and batch
            statistics of its steps, by this factor a step; 0 for those of the last step.
        precision: `float32`, `bf16` (autocast; the loss stays in float32), or `auto`: bf16 on CUDA
            and on a CPU with instructions for it, float32 elsewhere.
        validate_every: epochs between two looks at the held-out videos; more where looking would
            take more than a fiftieth of the time.
        checkpoint_every: epochs between two checkpoints; more where writing them would take more
            than a fiftieth of the time.
        seed: of the initial weights and of every draw.
    """

    method: str = "uscl"
    architecture: str = "resnet18"
    init: str | None = None
    projection_dim: int = 256
    classifier_on: str = "z"
    classifier_hidden: int = 0
    classes: tuple[str, ...] | None = None
    leave_out: tuple[str, ...] = ()
    data_rate: float = 1.0
    label_rate: float = 1.0
    sampling_power: float = 1.0
    beta: float = 0.5
    lambdas: int = 1
    fold_lambda: bool = False
    mix: str = "after"
    crop_scale: tuple[float, float] = (0.8, 1.0)
    crop_ratio: tuple[float, float] = (0.8, 1.25)
    flip: float = 0.5
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    rotation: float = 0.0
    gamma: float = 0.0
    speckle: float = 0.0
    speckle_rate: float = 0.0
    blur: float = 0.0
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)
    temperature: float = 0.5
    contrast_weight: float = 1.0
    class_weight: float = 0.2
    label_smoothing: float = 0.0
    teachers: tuple[str, ...] = ()
    teacher_weight: float = 1.0
    teacher_term: str = "features"
    momentum: float = 0.999
    queue: int = 65536
    consistency_weight: float = 1.0
    consistency_ramp: float = 0.0
    ensemble_momentum: float = 0.6
    confidence: float = 0.95
    batch_statistics: str = "per-view"
    sync_batch_norm: bool = False
    epochs: int = 300
    batch_size: int = 32
    smallest_batch: int = 8
    sizes: tuple[tuple[int, float], ...] = ()
    optimizer: str = "adam"
    learning_rate: float = 3e-4
    schedule: str = "epochs"
    constant_epochs: int = 11
    warmup: float = 0.0
    final_learning_rate: float = 1e-6
    weight_decay: float = 1e-4
    average: float = 0.0
    precision: str = "auto"
    validate_every: int = 10
    checkpoint_every: int = 1
    seed: int = 0


#: Inclusive bounds a setting must keep, beyond its type.
_BOUNDS: dict[str, tuple[float, float]] = {
    "projection_dim": (1, 2**16),
    "classifier_hidden": (0, 2**16),
    "sampling_power": (0, 1),
    "data_rate": (0, 1),
    "label_rate": (0, 1),
    "beta": (1e-3, 1e3),
    "lambdas": (1, 2),
    "flip": (0, 1),
    "brightness": (0, 1),
    "contrast": (0, 1),
    "saturation": (0, 1),
    "hue": (0, 0.5),
    "rotation": (0, 3.15),
    "gamma": (0, 5),
    "speckle": (0, 10),
    "speckle_rate": (0, 1),
    "blur": (0, 1),
    "temperature": (1e-3, 1e3),
    "contrast_weight": (0, 1e3),
    "label_smoothing": (0, 0.99),
    "teacher_weight": (0, 1e3),
    "class_weight": (0, 1e3),
    "momentum": (0, 1),
    "queue": (2, 2**24),
    "consistency_weight": (0, 1e6),
    "consistency_ramp": (0, 1),
    "ensemble_momentum": (0, 0.999999),
    "confidence": (0, 1),
    "epochs": (1, 10**7),
    "batch_size": (2, 2**20),
    "smallest_batch": (2, 2**20),
    "learning_rate": (0, 1e3),
    "constant_epochs": (0, 10**7),
    "warmup": (0, 0.99),
    "final_learning_rate": (0, 1e3),
    "weight_decay": (0, 1e3),
    "average": (0, 0.999999),
    "validate_every": (1, 10**7),
    "checkpoint_every": (1, 10**7),
    "seed": (0, 2**63 - 1),
}

#: What the settings that are words may say.
_WORDS: dict[str, tuple[str, ...]] = {
    "method": tuple(METHODS),
    "architecture": ARCHITECTURES,
    "classifier_on": ("z", "h"),
    "mix": ("after", "before"),
    "teacher_term": ("features", "similarities", "stages"),
    "optimizer": ("adam", "adamw"),
    "schedule": ("epochs", "steps"),
    "batch_statistics": ("per-view", "fused", "frozen"),
    "precision": ("auto", "float32", "bf16"),
}


def recipe_names() -> list[str]:
    """Names of the recipes that come with uscl-zoo."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name_or_file: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name or file and apply `key=value` overrides.

    Args:
        name_or_file: one of `recipe_names()`, or a YAML file of the keys of `Recipe`.
        overrides: settings as a person types them, e.g. `epochs=20` or `classes=[a,b]`.

    Raises:
        CardError: naming file and key, for an unknown recipe, an unknown key or a wrong value.
    """
    path = RECIPES / f"{name_or_file}.yaml"
    if not path.is_file():
        path = Path(name_or_file)
        if not path.is_file():
            raise CardError(
                f"no recipe '{name_or_file}': give a YAML file or one of "
                f"{', '.join(recipe_names())}"
            )
    settings: dict[str, Any] = read_yaml(path)
    _check(from_mapping(Recipe, settings, str(path)), str(path))
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise CardError(f"'{override}' on the command line: settings are written key=value")
        try:
            settings[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise CardError(f"'{override}' on the command line: the value is not YAML") from error
    where = f"{path} with the command line" if overrides else str(path)
    recipe = from_mapping(Recipe, settings, where)
    _check(recipe, where)
    return recipe


def _check(recipe: Recipe, where: str) -> None:
    def refuse(key: str, rule: str) -> None:
        raise CardError(f"{where}: {key}: {rule}, not {getattr(recipe, key)!r}")

    for key, (low, high) in _BOUNDS.items():
        if not low <= getattr(recipe, key) <= high:
            refuse(key, f"should be from {low:g} to {high:g}")
    for key, words in _WORDS.items():
        if getattr(recipe, key) not in words:
            refuse(key, f"should be one of {', '.join(words)}")
    low, high = recipe.crop_scale
    if not 0 < low <= high <= 1:
        refuse("crop_scale", "should be two growing shares of the area, above 0 and up to 1")
    low, high = recipe.crop_ratio
    if not 0 < low <= high:
        refuse("crop_ratio", "should be two growing ratios above 0")
    sides, ends = [side for side, _ in recipe.sizes], [end for _, end in recipe.sizes]
    if any(not 32 <= side <= 4096 for side in sides):
        refuse("sizes", "should have sides from 32 to 4096 pixels")
    if ends and (ends[-1] != 1 or sorted({0.0, *ends}) != [0.0, *ends]):
        refuse("sizes", "should have growing shares of the steps, the last of them 1")
    if recipe.init is not None and not recipe.init.strip():
        refuse("init", "should name weights, or be null")
    if len(set(recipe.teachers)) != len(recipe.teachers) or not all(recipe.teachers):
        refuse("teachers", "should name each teacher once")
    if recipe.teachers and recipe.method in ("moco", *CONSISTENT):
        refuse("teachers", f"should be [] with method {recipe.method}, whose loss has no such term")
    if recipe.average and recipe.method == "moco":
        refuse("average", "should be 0 with method moco, which has an average of its own")
    if min(recipe.std) <= 0:
        refuse("std", "should be above 0")
    if recipe.classes is not None and len(set(recipe.classes)) != len(recipe.classes):
        refuse("classes", "should name each class once")
    # ignoring these in silence would make a card that tells of labels nothing saw
    if recipe.method in ("simclr", "moco") and recipe.classes != ():
        refuse("classes", f"should be [] with method {recipe.method}, which sees no labels")
    if recipe.method == "moco" and recipe.batch_statistics != "per-view":
        refuse("batch_statistics", "should be per-view with method moco, whose views part networks")
    if recipe.init is None and recipe.batch_statistics == "frozen":
        refuse("batch_statistics", "should be per-view or fused without init, whose would be kept")
    if recipe.method == "temporal" and recipe.batch_statistics != "per-view":
        refuse("batch_statistics", "should be per-view with method temporal, which sees one view")
    if recipe.method in ("supervised", *CONSISTENT):
        own = f"with method {recipe.method}"
        if recipe.classes == ():
            refuse("classes", f"should name classes, or be null for all, {own}")
        if recipe.class_weight == 0:
            refuse("class_weight", f"should be above 0 {own}, which begins with labels")


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """A recipe as the plain mapping that YAML, JSON and cards hold."""
    plain: dict[str, Any] = to_plain(recipe)
    return plain


def replace(recipe: Recipe, **settings: Any) -> Recipe:
    """A recipe with some settings changed and checked again."""
    changed = dataclasses.replace(recipe, **settings)
    _check(changed, "recipe")
    return changed
