"""The recipe: every setting of a pretraining run, in one frozen dataclass."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from uscl_zoo.card import ARCHITECTURES
from uscl_zoo.errors import CardError
from uscl_zoo.records import from_mapping, read_yaml, to_plain

RECIPES = Path(__file__).parent / "recipes"

#: Methods by the value of `Recipe.method`, named as a reader of a table would.
METHODS = {
    "uscl": "USCL",
    "simclr": "SimCLR",
    "pair": "Contrast of two frames",
    "supervised": "Cross-entropy alone",
    "moco": "MoCo v2",
}


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
            not know).
        architecture: timm name of the encoder.
        projection_dim: width of z, the output of the projection head.
        classifier_on: what the class logits are read from: `z`, the projection (released code), or
            `h`, the pooled features (how our notes have the paper's figure; unconfirmed).
        classes: labels the classification term sees, in the order of its logits; None for every
            label of the store, empty for no such term. Videos with another label are trained on
            as unlabelled.
        data_rate: share of the training videos used, drawn by video with `seed`; a smaller share
            is part of a larger one. The classes and the held-out videos stay.
        label_rate: share of the labelled videos, among those used, whose label is used; drawn by
            video (released code).
        beta: both parameters of the Beta distribution of λ (paper, positive pair generation).
        lambdas: draws of λ a video: 1, shared by both views (released code), or 2, one a view (how
            we recall the paper's figure; unconfirmed).
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
        mean: of each channel, intensities in 0-1.
        std: of each channel, intensities in 0-1.
        temperature: τ of NT-Xent.
        class_weight: λ_cls, the weight of the labelled term.
        momentum: m of the encoder of `moco` that follows, θ_k ← m θ_k + (1 − m) θ_q (He et al.,
            CVPR 2020, equation 2 and section 3.2). No other method has one.
        queue: keys that `moco` contrasts with (MoCo v2 has 65,536). No other method has one.
        batch_statistics: `per-view`: a forward a view, each normalised by its own batch statistics
            (released code); or `fused`: both views in one forward share them, which is another
            method, not a faster way to the same one.
        sync_batch_norm: with several ranks, normalise each view by the statistics of all ranks'
            images, as one rank would, and not of each rank's own.
        epochs: passes in which every video is sampled once.
        batch_size: videos a step, each of which gives two views.
        smallest_batch: a last batch with fewer videos is merged into the one before it, because
            a handful of negatives makes another loss of it.
        learning_rate: of Adam.
        constant_epochs: epochs before the cosine begins. The authors' "warm-up" is this.
        final_learning_rate: where the cosine ends.
        weight_decay: coupled L2 on every parameter, as `torch.optim.Adam` means it.
        precision: `float32`, `bf16` (autocast; the loss stays in float32), or `auto`: bf16 on CUDA
            and on a CPU with instructions for it, float32 elsewhere.
        validate_every: epochs between two losses on the held-out videos.
        checkpoint_every: epochs between two checkpoints; more where writing them would take more
            than a twentieth of the time.
        seed: of the initial weights and of every draw.
    """

    method: str = "uscl"
    architecture: str = "resnet18"
    projection_dim: int = 256
    classifier_on: str = "z"
    classes: tuple[str, ...] | None = None
    data_rate: float = 1.0
    label_rate: float = 1.0
    beta: float = 0.5
    lambdas: int = 1
    mix: str = "after"
    crop_scale: tuple[float, float] = (0.8, 1.0)
    crop_ratio: tuple[float, float] = (0.8, 1.25)
    flip: float = 0.5
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)
    temperature: float = 0.5
    class_weight: float = 0.2
    momentum: float = 0.999
    queue: int = 65536
    batch_statistics: str = "per-view"
    sync_batch_norm: bool = False
    epochs: int = 300
    batch_size: int = 32
    smallest_batch: int = 8
    learning_rate: float = 3e-4
    constant_epochs: int = 11
    final_learning_rate: float = 1e-6
    weight_decay: float = 1e-4
    precision: str = "auto"
    validate_every: int = 10
    checkpoint_every: int = 1
    seed: int = 0


#: Inclusive bounds a setting must keep, beyond its type.
_BOUNDS: dict[str, tuple[float, float]] = {
    "projection_dim": (1, 2**16),
    "data_rate": (0, 1),
    "label_rate": (0, 1),
    "beta": (1e-3, 1e3),
    "lambdas": (1, 2),
    "flip": (0, 1),
    "brightness": (0, 1),
    "contrast": (0, 1),
    "saturation": (0, 1),
    "hue": (0, 0.5),
    "temperature": (1e-3, 1e3),
    "class_weight": (0, 1e3),
    "momentum": (0, 1),
    "queue": (2, 2**24),
    "epochs": (1, 10**7),
    "batch_size": (2, 2**20),
    "smallest_batch": (2, 2**20),
    "learning_rate": (0, 1e3),
    "constant_epochs": (0, 10**7),
    "final_learning_rate": (0, 1e3),
    "weight_decay": (0, 1e3),
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
    "batch_statistics": ("per-view", "fused"),
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
    if min(recipe.std) <= 0:
        refuse("std", "should be above 0")
    if recipe.classes is not None and len(set(recipe.classes)) != len(recipe.classes):
        refuse("classes", "should name each class once")
    # ignoring these in silence would make a card that tells of labels nothing saw
    if recipe.method in ("simclr", "moco") and recipe.classes != ():
        refuse("classes", f"should be [] with method {recipe.method}, which sees no labels")
    if recipe.method == "moco" and recipe.batch_statistics != "per-view":
        refuse("batch_statistics", "should be per-view with method moco, whose views part networks")
    if recipe.method == "supervised" and recipe.classes == ():
        refuse("classes", "should name classes, or be null for all, with method supervised")
    if recipe.method == "supervised" and recipe.class_weight == 0:
        refuse("class_weight", "should be above 0 with method supervised, which has no other term")


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """A recipe as the plain mapping that YAML, JSON and cards hold."""
    plain: dict[str, Any] = to_plain(recipe)
    return plain


def replace(recipe: Recipe, **settings: Any) -> Recipe:
    """A recipe with some settings changed and checked again."""
    changed = dataclasses.replace(recipe, **settings)
    _check(changed, "recipe")
    return changed
