from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from uscl_zoo.errors import CardError
from uscl_zoo.training.learning.recipe import (
    CONSISTENT,
    METHODS,
    Recipe,
    load_recipe,
    recipe_names,
    replace,
    settings_of,
)
from uscl_zoo.training.preparing.labels import LABEL_SCHEMES


def changes(recipe: Recipe, other: Recipe) -> set[str]:
    """The settings in which two recipes differ."""
    return {key for key, value in settings_of(recipe).items() if value != settings_of(other)[key]}


@pytest.mark.parametrize("name", recipe_names())
def test_packaged_recipes_are_complete(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.architecture in name
    if name.startswith("open"):
        # beyond the paper
        return
    # what a recipe does not change is as the authors released it
    own = {"temperature", "momentum", "queue"} if recipe.method == "moco" else set()
    if recipe.method in CONSISTENT:
        own = {"consistency_weight", "consistency_ramp"}
    usual = {"architecture", "classes", "method", "class_weight"}
    # ResNet-50 was trained on two cores
    shorter = {"epochs"} if name == "pocus_resnet50" else set()
    assert changes(recipe, Recipe()) <= usual | own | shorter
    if recipe.method == "uscl":
        assert recipe.class_weight == Recipe().class_weight


@pytest.mark.parametrize(
    ("method", "changed"),
    [
        ("simclr", {"method", "classes"}),
        ("pair", {"method", "classes"}),
        ("supervised", {"method", "class_weight"}),
        ("moco", {"method", "classes", "temperature", "momentum", "queue"}),
        ("pi", {"method", "class_weight", "consistency_weight", "consistency_ramp"}),
        ("temporal", {"method", "class_weight", "consistency_weight", "consistency_ramp"}),
        ("fixmatch", {"method", "class_weight"}),
    ],
)
def test_methods_to_compare_with_differ_only_where_they_must(
    method: str, changed: set[str]
) -> None:
    recipe = load_recipe(f"pocus_resnet18_{method}")
    assert recipe.method == method
    assert changes(recipe, load_recipe("pocus_resnet18")) == changed


def test_every_method_has_a_recipe() -> None:
    assert {load_recipe(name).method for name in recipe_names()} == set(METHODS)


@pytest.mark.parametrize("name", ["us4_resnet18", "us4_resnet50"])
def test_classes_of_us4_are_those_of_its_labels(name: str) -> None:
    classes = load_recipe(name).classes
    assert classes is not None
    assert set(classes) == set(LABEL_SCHEMES["us4"].values())


def test_defaults_are_the_released_settings() -> None:
    recipe = Recipe()
    assert (recipe.temperature, recipe.class_weight, recipe.beta) == (0.5, 0.2, 0.5)
    assert (recipe.epochs, recipe.batch_size, recipe.constant_epochs) == (300, 32, 11)
    assert (recipe.learning_rate, recipe.final_learning_rate) == (3e-4, 1e-6)
    assert (recipe.weight_decay, recipe.projection_dim) == (1e-4, 256)
    assert (recipe.crop_scale, recipe.crop_ratio) == ((0.8, 1.0), (0.8, 1.25))
    assert (recipe.mean, recipe.std) == ((0.5,) * 3, (0.25,) * 3)
    assert (recipe.method, recipe.classifier_on, recipe.batch_statistics) == (
        "uscl",
        "z",
        "per-view",
    )
    assert (recipe.mix, recipe.lambdas) == ("after", 1)
    assert (recipe.data_rate, recipe.label_rate) == (1, 1)


def test_overrides_are_typed_as_yaml() -> None:
    settings = (
        "epochs=20",
        "learning_rate=1e-3",
        "classes=[a, b]",
        "std=[1,1,1]",
        "precision=bf16",
    )
    recipe = load_recipe("pocus_resnet18", settings)
    assert (recipe.epochs, recipe.learning_rate, recipe.precision) == (20, 1e-3, "bf16")
    assert (recipe.classes, recipe.std) == (("a", "b"), (1.0, 1.0, 1.0))
    assert load_recipe("pocus_resnet18", ["classes=null"]).classes is None


def test_a_recipe_survives_its_file(tmp_path: Path) -> None:
    recipe = Recipe(classes=("a", "b"), epochs=3, crop_ratio=(0.5, 2.0))
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(settings_of(recipe)))
    assert load_recipe(str(path)) == recipe


WRONG = [
    ("epocs=3", "unknown key 'epocs'"),
    ("epochs=3.5", "epochs: should be of type int, not 3.5"),
    ("epochs=", "epochs: should be of type int, not None"),
    ("epochs=0", "epochs: should be from 1 to 1e+07, not 0"),
    ("batch_size=1", "batch_size: should be from 2 to"),
    ("label_rate=1.5", "label_rate: should be from 0 to 1, not 1.5"),
    ("temperature=0", "temperature: should be from 0.001 to 1000, not 0.0"),
    ("hue=0.6", "hue: should be from 0 to 0.5, not 0.6"),
    ("seed=-1", "seed: should be from 0"),
    ("learning_rate=nan", "learning_rate: should be finite, not nan"),
    ("learning_rate=.nan", "learning_rate: should be finite, not nan"),
    ("architecture=vgg16", "architecture: should be one of resnet18, resnet50, not 'vgg16'"),
    ("precision=fp16", "precision: should be one of auto, float32, bf16, not 'fp16'"),
    (
        "method=byol",
        "method: should be one of uscl, simclr, pair, supervised, moco, pi, temporal, fixmatch, "
        "not 'byol'",
    ),
    ("mix=never", "mix: should be one of after, before, not 'never'"),
    ("mix=true", "mix: should be of type str, not True"),
    ("classifier_on=x", "classifier_on: should be one of z, h, not 'x'"),
    ("batch_statistics=frozen", "batch_statistics: should be per-view or fused without init"),
    (
        "batch_statistics=none",
        "batch_statistics: should be one of per-view, fused, frozen, not 'none'",
    ),
    ("momentum=1.5", "momentum: should be from 0 to 1, not 1.5"),
    ("queue=0", "queue: should be from 2 to"),
    ("lambdas=3", "lambdas: should be from 1 to 2, not 3"),
    ("lambdas=0", "lambdas: should be from 1 to 2, not 0"),
    ("data_rate=1.5", "data_rate: should be from 0 to 1, not 1.5"),
    ("crop_scale=[0.9, 0.8]", "crop_scale: should be two growing shares"),
    ("crop_scale=[0, 1]", "crop_scale: should be two growing shares"),
    ("crop_scale=[0.5, 1.1]", "crop_scale: should be two growing shares"),
    ("crop_ratio=[0, 1]", "crop_ratio: should be two growing ratios"),
    ("crop_ratio=[1]", "crop_ratio: should have 2 values, not 1"),
    ("std=[0, 1, 1]", "std: should be above 0"),
    ("classes=[a, a]", "classes: should name each class once"),
    ("classes=a", "classes: should be a list, not 'a'"),
    ("sampling_power=-1", "sampling_power: should be from 0 to 1, not -1.0"),
    ("rotation=4", "rotation: should be from 0 to 3.15, not 4.0"),
    ("gamma=-0.1", "gamma: should be from 0 to 5, not -0.1"),
    ("speckle_rate=2", "speckle_rate: should be from 0 to 1, not 2.0"),
    ("blur=2", "blur: should be from 0 to 1, not 2.0"),
    ("warmup=1", "warmup: should be from 0 to 0.99, not 1.0"),
    ("average=1", "average: should be from 0 to 0.999999, not 1.0"),
    ("label_smoothing=1", "label_smoothing: should be from 0 to 0.99, not 1.0"),
    ("optimizer=sgd", "optimizer: should be one of adam, adamw, not 'sgd'"),
    ("schedule=linear", "schedule: should be one of epochs, steps, not 'linear'"),
    ("teacher_term=kl", "teacher_term: should be one of features, similarities, stages, not 'kl'"),
    ("teachers=[a, a]", "teachers: should name each teacher once"),
    ("teachers=a", "teachers: should be a list, not 'a'"),
    ("init=''", "init: should name weights, or be null"),
    ("init=3", "init: should be of type str, not 3"),
    ("sizes=[[16, 1]]", "sizes: should have sides from 32 to 4096 pixels"),
    ("sizes=[[64, 0.5]]", "sizes: should have growing shares of the steps, the last of them 1"),
    ("sizes=[[64, 1], [32, 1]]", "sizes: should have growing shares of the steps"),
    ("sizes=[[64, 0], [32, 1]]", "sizes: should have growing shares of the steps"),
    ("sizes=[[64, 0.7], [96, 0.6], [128, 1]]", "sizes: should have growing shares of the steps"),
    ("sizes=[64]", "sizes[0]: should be a list, not 64"),
]


@pytest.mark.parametrize(("setting", "told"), WRONG)
def test_a_wrong_override_names_key_and_place(setting: str, told: str) -> None:
    with pytest.raises(
        CardError, match=f"pocus_resnet18.yaml with the command line: {re.escape(told)}"
    ):
        load_recipe("pocus_resnet18", [setting])


@pytest.mark.parametrize(("setting", "told"), WRONG)
def test_a_wrong_file_names_file_and_key(tmp_path: Path, setting: str, told: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(setting.replace("=", ": ", 1) + "\n")
    with pytest.raises(CardError, match=f"^{re.escape(f'{path}: {told}')}") as caught:
        load_recipe(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "settings", "told"),
    [
        ("pocus_resnet18", ["method=simclr"], "classes: should be [] with method simclr, which"),
        ("pocus_resnet18_simclr", ["classes=null"], "classes: should be [] with method simclr"),
        ("pocus_resnet18_moco", ["classes=null"], "classes: should be [] with method moco"),
        (
            "pocus_resnet18_moco",
            ["batch_statistics=fused"],
            "batch_statistics: should be per-view with method moco",
        ),
        ("pocus_resnet18_supervised", ["classes=[]"], "classes: should name classes, or be null"),
        ("pocus_resnet18_moco", ["teachers=[a]"], "teachers: should be [] with method moco"),
        ("pocus_resnet18_moco", ["average=0.9"], "average: should be 0 with method moco"),
        (
            "pocus_resnet18_supervised",
            ["class_weight=0"],
            "class_weight: should be above 0 with method supervised",
        ),
    ],
)
def test_settings_that_a_method_cannot_honour(recipe: str, settings: list[str], told: str) -> None:
    with pytest.raises(CardError, match=re.escape(f"{recipe}.yaml with the command line: {told}")):
        load_recipe(recipe, settings)


def test_labels_can_be_added_to_the_contrast_of_two_frames() -> None:
    assert load_recipe("pocus_resnet18_pair", ["classes=null"]).classes is None


@pytest.mark.parametrize("setting", ["epochs", "--epochs 3", "epochs: 3"])
def test_overrides_are_written_with_an_equals_sign(setting: str) -> None:
    with pytest.raises(CardError, match="written key=value"):
        load_recipe("pocus_resnet18", [setting])


def test_an_override_that_is_no_yaml() -> None:
    with pytest.raises(CardError, match=r"^'classes=\[a' on the command line"):
        load_recipe("pocus_resnet18", ["classes=[a"])


@pytest.mark.parametrize("name", ["pocus_resnet34", "", "."])
def test_an_unknown_recipe_is_told_those_there_are(name: str) -> None:
    with pytest.raises(CardError, match=f"no recipe '{re.escape(name)}'.*pocus_resnet18"):
        load_recipe(name)


def test_replacing_checks_again() -> None:
    assert replace(Recipe(), epochs=3) == dataclasses.replace(Recipe(), epochs=3)
    with pytest.raises(CardError, match=r"^recipe: epochs: should be from"):
        replace(Recipe(), epochs=0)
