"""Every checkpoint of the zoo through every door of timm: a new card is tested by existing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fresh
import numpy as np
import pytest
import timm
import torch
from conftest import install_card
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import uscl_zoo
from uscl_zoo.errors import (
    CardError,
    CheckpointError,
    DigestError,
    UnknownModelError,
    WeightsNotFoundError,
)
from uscl_zoo.zoo import weights_cache
from uscl_zoo.zoo.card import MODELS, Card
from uscl_zoo.zoo.catalogue import packaged_cards
from uscl_zoo.zoo.digests import sha256_of

PACKAGED = packaged_cards()
#: Cards with weights: the zoo's own, and one that a user adds.
KNOWN = [name for name, card in PACKAGED.items() if card.has_weights]
#: Those whose file comes with the package; the cards of others say how to make it again.
OWN = [name for name in KNOWN if (weights_cache._BUNDLED / PACKAGED[name].weights.file).is_file()]
WITH_WEIGHTS = [*OWN, "resnet50_uscl.trial"]
WITHOUT_WEIGHTS = [name for name, card in PACKAGED.items() if not card.has_weights]

Create = Callable[..., nn.Module]


@pytest.fixture(params=WITH_WEIGHTS)
def card(request: pytest.FixtureRequest, installed: Callable[..., Card]) -> Card:
    name: str = request.param
    return PACKAGED[name] if name in PACKAGED else installed(name)


@pytest.fixture
def trial(installed: Callable[..., Card]) -> Card:
    return installed()


@pytest.fixture(params=["uscl_zoo", "timm"])
def create(request: pytest.FixtureRequest) -> Create:
    doors: dict[str, Create] = {"uscl_zoo": uscl_zoo.create_model, "timm": timm.create_model}
    return doors[request.param]


def weights_of(card: Card) -> dict[str, Tensor]:
    return {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in load_file(weights_cache.locate(card).path).items()
    }


def run(model: nn.Module, images: Tensor) -> Any:
    with torch.inference_mode():
        return model.eval()(images)


def noise(channels: int = 3, side: int = 64) -> Tensor:
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))


def assert_loaded(model: nn.Module, card: Card, but: tuple[str, ...] = ()) -> None:
    """Every tensor of the file is in the network, bit for bit; `but` names exceptions."""
    state = model.state_dict()
    for name, tensor in weights_of(card).items():
        if name not in but:
            assert torch.equal(state[name], tensor), name


# --------------------------------------------------------------------------- every checkpoint


def test_pretrained_weights_are_those_of_the_card(card: Card, create: Create) -> None:
    model = create(card.name, pretrained=True)
    assert_loaded(model, card)
    assert set(model.state_dict()) == set(weights_of(card))
    assert run(model, noise()).shape == (2, model.num_features)


def test_what_a_file_fills_is_not_drawn_before(card: Card, create: Create) -> None:
    """To draw it takes longer than to load it."""
    before = torch.get_rng_state()
    create(card.name, pretrained=True, num_classes=0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(0)
    first = create(card.name, pretrained=True, num_classes=3).get_submodule("fc").weight
    torch.manual_seed(1)
    second = create(card.name, pretrained=True, num_classes=3).get_submodule("fc").weight
    assert isinstance(first, Tensor) and isinstance(second, Tensor)
    assert first.std() > 0 and not torch.equal(first, second)


def test_what_no_file_fills_is_drawn(trial: Card, create: Create) -> None:
    kwargs = {"block_args": {"attn_layer": "se"}, "pretrained_strict": False}
    torch.manual_seed(0)
    network = create(trial.name, pretrained=True, **kwargs)
    attention = [p for name, p in network.named_parameters() if "se.fc" in name and p.ndim == 4]
    assert attention and all(0 < p.abs().max() < 2 and p.std() > 0 for p in attention)


def test_without_weights_the_network_is_random(card: Card, create: Create) -> None:
    before = create(card.name).state_dict()["conv1.weight"]
    assert not torch.equal(before, weights_of(card)["conv1.weight"])
    assert not torch.equal(before, create(card.name).state_dict()["conv1.weight"])


@pytest.mark.parametrize("classes", [0, 3, 1000])
def test_num_classes(card: Card, create: Create, classes: int) -> None:
    model = create(card.name, pretrained=True, num_classes=classes)
    assert_loaded(model, card)
    assert run(model, noise()).shape == (2, classes or model.num_features)


@pytest.fixture(scope="module")
def greys(data: Path) -> list[Image.Image]:
    """Breast images, and a still of every other collection of the open data."""
    breast = sorted((data / "busi").rglob("*.jpg"))[::300]
    folders = sorted(folder for folder in (data / "open").glob("*/*") if folder.is_dir())
    stills = [min(folder.rglob("*.webp")) for folder in folders[::2]]
    assert len(breast) > 2
    assert len(stills) > 4
    images = []
    for path in (*breast, *stills):
        with Image.open(path) as image:
            images.append(image.convert("L"))
    return images


@pytest.mark.parametrize(
    ("create", "extra"),
    # either door, which open into the same room
    [(uscl_zoo.create_model, {}), (timm.create_model, {"features_only": True})],
    ids=["uscl_zoo", "timm, features only"],
)
def test_one_channel_is_the_same_network_on_grey(
    card: Card, create: Create, greys: list[Image.Image], extra: dict[str, Any]
) -> None:
    def embed(**kwargs: Any) -> Tensor:
        model = create(card.name, pretrained=True, **extra, **kwargs)
        found = run(model, uscl_zoo.create_transform(model).batch(greys))
        return torch.cat([part.flatten(1) for part in found], 1) if extra else found

    assert torch.cosine_similarity(embed(in_chans=1), embed()).min() > 0.9999


@pytest.mark.parametrize("pretrained", [True, False])
def test_the_state_of_one_channel_can_be_kept(
    card: Card, create: Create, greys: list[Image.Image], pretrained: bool
) -> None:
    """A network of one channel, saved and loaded into another, is the same network."""
    one = create(card.name, pretrained=True, in_chans=1)
    other = create(card.name, pretrained=pretrained, in_chans=1)
    other.load_state_dict(one.state_dict())
    frames = uscl_zoo.create_transform(other).batch(greys[:2])
    assert frames.shape[1] == 1
    assert torch.equal(run(one, frames), run(other, frames))


def test_one_channel_goes_by_the_statistics_it_is_given(
    trial: Card, create: Create, greys: list[Image.Image]
) -> None:
    overlay = {"mean": (0.2, 0.5, 0.6), "std": (0.2, 0.3, 0.1)}
    embeddings = []
    for channels in (1, 3):
        model = create(
            trial.name, pretrained=True, in_chans=channels, pretrained_cfg_overlay=overlay
        )
        embeddings.append(run(model, uscl_zoo.create_transform(model).batch(greys[:4])))
    assert torch.cosine_similarity(*embeddings).min() > 0.9999


def test_four_channels(card: Card, create: Create) -> None:
    model = create(card.name, pretrained=True, in_chans=4)
    assert_loaded(model, card, but=("conv1.weight",))
    first = model.state_dict()["conv1.weight"]
    assert torch.allclose(first[:, :3], weights_of(card)["conv1.weight"] * 3 / 4)
    assert run(model, noise(4)).shape == (2, model.num_features)


@pytest.mark.parametrize("extra", [{}, {"num_classes": 3}, {"num_classes": 0}])
def test_features_only(card: Card, create: Create, extra: dict[str, int]) -> None:
    model = create(card.name, pretrained=True, features_only=True, out_indices=(2, 4), **extra)
    maps = run(model, noise())
    widest = 512 if card.architecture == "resnet18" else 2048
    assert [tuple(m.shape[1:]) for m in maps] == [(widest // 4, 8, 8), (widest, 2, 2)]
    whole = create(card.name, pretrained=True, global_pool="")
    assert torch.allclose(maps[-1], run(whole, noise()), atol=1e-5)


def test_global_pool(card: Card, create: Create) -> None:
    maps = run(create(card.name, pretrained=True, global_pool=""), noise())
    pooled = run(create(card.name, pretrained=True), noise())
    assert maps.shape == (2, pooled.shape[1], 2, 2)
    assert torch.allclose(maps.mean((2, 3)), pooled, atol=1e-5)


def test_an_overlay_changes_what_it_names(card: Card, create: Create) -> None:
    overlay = {"mean": (0.1, 0.2, 0.3)}
    model = create(card.name, pretrained=True, pretrained_cfg_overlay=overlay)
    assert_loaded(model, card)
    config = timm.data.resolve_model_data_config(model)
    assert (config["mean"], config["std"]) == ((0.1, 0.2, 0.3), card.input.std)


def test_checkpoint_path(card: Card, create: Create) -> None:
    path = weights_cache.locate(card).path
    assert_loaded(create(card.name, checkpoint_path=str(path)), card)


def test_data_config_is_the_cards_input(card: Card, create: Create) -> None:
    config = timm.data.resolve_model_data_config(create(card.name, pretrained=True))
    asked = card.input
    assert config == {
        "input_size": asked.size,
        "interpolation": asked.interpolation,
        "mean": asked.mean,
        "std": asked.std,
        "crop_pct": asked.crop_pct,
        "crop_mode": asked.crop_mode,
    }


def test_one_channel_has_a_transform_of_one_channel(card: Card) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120), np.uint8))
    model = uscl_zoo.create_model(card.name, pretrained=True, in_chans=1)
    assert len(timm.data.resolve_model_data_config(model)["mean"]) == 3  # timm's answer
    frames = uscl_zoo.create_transform(model)(image)[None]
    assert frames.shape == (1, 1, *card.input.size[1:])
    assert run(model, frames).shape == (1, model.num_features)


def test_squash_is_the_resize_of_the_original(card: Card) -> None:
    """timm's evaluation transform and ours are Resize((224, 224)) with no crop."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (240, 330, 3), np.uint8))
    model = uscl_zoo.create_model(card.name)
    _, height, width = card.input.size
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32) / 255
    expected = torch.from_numpy((pixels - card.input.mean) / card.input.std).permute(2, 0, 1)
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(model))(image)
    ours = uscl_zoo.create_transform(model)(image)
    assert torch.allclose(theirs, expected.float(), atol=1e-5)
    assert torch.allclose(ours, expected.float(), atol=1e-5)


def test_training_starts_from_it(card: Card, create: Create) -> None:
    model = create(card.name, pretrained=True, num_classes=2).train()
    model(noise()).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# ------------------------------------------------------------------------------- the registry


def test_timm_lists_the_models() -> None:
    assert set(MODELS) == {card.model for card in PACKAGED.values()}
    assert set(timm.list_models()) >= set(MODELS)
    assert set(timm.list_pretrained()) >= set(KNOWN)
    assert not set(timm.list_pretrained()) & set(WITHOUT_WEIGHTS)


@pytest.mark.parametrize(
    ("model", "tag"),
    [("resnet18_uscl", "open"), ("resnet50_uscl", "open"), ("resnet18_imagenet", "mit")],
)
def test_the_default_of_each_model(model: str, tag: str) -> None:
    assert uscl_zoo.model_info(model).tag == tag
    config = timm.get_pretrained_cfg(model)
    assert config is not None
    assert config.tag == tag
    made: Any = uscl_zoo.create_model(model, pretrained=True)
    assert made.pretrained_cfg["tag"] == tag


def test_every_model_has_its_default_asserted() -> None:
    (cases,) = test_the_default_of_each_model.pytestmark  # type: ignore[attr-defined]
    assert {model for model, _ in cases.args[1]} == set(MODELS)


def test_what_is_not_uscl_does_not_cite_it() -> None:
    for card in PACKAGED.values():
        config = timm.get_pretrained_cfg(card.name)
        assert config is not None
        assert config.origin_url is not None
        assert (config.paper_ids == "arXiv:2011.13066") == card.is_uscl
        assert ("983632847/USCL" in config.origin_url) == card.is_uscl


@pytest.mark.parametrize("name", PACKAGED)
def test_timm_knows_what_a_card_says(name: str) -> None:
    card, config = PACKAGED[name], timm.get_pretrained_cfg(name)
    assert config is not None
    assert (config.architecture, config.tag) == (card.model, card.tag)
    assert (config.mean, config.std, config.input_size) == (
        card.input.mean,
        card.input.std,
        card.input.size,
    )
    assert (config.crop_mode, config.crop_pct) == ("squash", 1.0)
    assert config.num_classes == 0
    assert config.license == card.licence


def test_listing(trial: Card) -> None:
    assert uscl_zoo.list_models() == sorted(MODELS)
    assert uscl_zoo.list_models("*50*") == ["resnet50_uscl"]
    assert uscl_zoo.list_models(pretrained=True) == sorted([*KNOWN, trial.name])


def in_another_process(code: str, folder: Path) -> Any:
    """What a Python process with its own folder of cards prints as JSON."""
    done = fresh.run(code, environment={**os.environ, "USCL_ZOO_WEIGHTS": folder})
    done.check_returncode()
    return json.loads(done.stdout), done.stderr


DEFAULTS = """
import json, timm, torch, uscl_zoo
from safetensors.torch import load_file
model = timm.create_model("resnet18_uscl", pretrained=True)
named = timm.create_model("resnet18_uscl.aaa", pretrained=True)
print(json.dumps({
    "default": timm.get_pretrained_cfg("resnet18_uscl").tag,
    "ours": uscl_zoo.model_info("resnet18_uscl").tag,
    "model": model.pretrained_cfg["tag"],
    "same": torch.equal(model.conv1.weight, named.conv1.weight),
    "pretrained": timm.list_pretrained("*uscl*"),
}))
"""


def test_the_default_is_the_first_with_weights(tmp_path: Path) -> None:
    """The zoo's own weights before a user's, and weights before a card without."""
    install_card(tmp_path, "resnet18_uscl.aaa")
    told, _ = in_another_process(DEFAULTS, tmp_path)
    own = [name for name in OWN if name.startswith("resnet18_uscl.")]
    expected = own[0].split(".")[1] if own else "aaa"
    assert (told["default"], told["ours"], told["model"]) == (expected,) * 3
    assert told["same"] == (expected == "aaa")
    assert "resnet18_uscl.aaa" in told["pretrained"]


def test_a_damaged_card_of_the_user_costs_only_itself(tmp_path: Path) -> None:
    install_card(tmp_path)
    (tmp_path / "resnet18_uscl.torn.yaml").write_text("name: resnet18_uscl.torn\n")
    code = (
        "import json, uscl_zoo\n"
        "uscl_zoo.create_model('resnet18_uscl.trial', pretrained=True)\n"
        "print(json.dumps(uscl_zoo.list_models(pretrained=True)))"
    )
    told, warned = in_another_process(code, tmp_path)
    assert "resnet18_uscl.trial" in told
    assert "resnet18_uscl.torn" not in told
    assert "resnet18_uscl.torn.yaml: key 'architecture' is missing" in warned


@pytest.mark.filterwarnings("ignore:left out of the zoo")
def test_a_damaged_card_says_what_is_wrong_with_it(trial: Card, home: Path) -> None:
    (home / ".uscl_zoo" / "resnet18_uscl.torn.yaml").write_text("name: resnet18_uscl.torn\n")
    assert uscl_zoo.model_info(trial.name) == trial
    with pytest.raises(CardError, match=r"resnet18_uscl\.torn\.yaml: key 'architecture'"):
        uscl_zoo.create_model("resnet18_uscl.torn")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet18_uscl.us5", "resnet18_uscl.us4"),
        ("resnet_18_uscl", "resnet18_uscl"),
        ("xyz", "uscl list"),
        ("", "uscl list"),
        ("resnet18", "resnet18_uscl"),
    ],
)
def test_an_unknown_name_is_told_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UnknownModelError, match=near) as caught:
        uscl_zoo.create_model(name)
    assert "\n" not in str(caught.value)


def test_timm_is_told_of_an_unknown_tag() -> None:
    with pytest.raises(UnknownModelError, match=r"no model 'resnet18_uscl\.us5' in the zoo"):
        timm.create_model("resnet18_uscl.us5", pretrained=True)


@pytest.mark.parametrize("name", WITHOUT_WEIGHTS)
def test_weights_that_are_not_ours_are_asked_for(name: str, create: Create) -> None:
    with pytest.raises(WeightsNotFoundError, match="uscl import"):
        create(name, pretrained=True)
    assert run(create(name), noise()).shape[0] == 2


# --------------------------------------------------------- no weights but those of the card


def test_a_changed_file_is_not_loaded(trial: Card, create: Create, home: Path) -> None:
    path = home / ".uscl_zoo" / trial.weights.file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DigestError, match=trial.weights.file):
        create(trial.name, pretrained=True)


def test_an_absent_file_is_not_replaced_by_chance(trial: Card, create: Create, home: Path) -> None:
    (home / ".uscl_zoo" / trial.weights.file).unlink()
    with pytest.raises(WeightsNotFoundError, match=trial.name):
        create(trial.name, pretrained=True)


def foreign_file(path: Path, how: str) -> Path:
    """A file that timm would load with strict loading off, leaving the network random."""
    other = "resnet34" if how == "another architecture" else "resnet18"
    state = timm.create_model(other, num_classes=0).state_dict()
    if how == "renamed":
        state = {f"features.{name}": tensor for name, tensor in state.items()}
    elif how == "half of it":
        state = {name: tensor for name, tensor in state.items() if "layer4" not in name}
    save_file(state, path)
    return path


FOREIGN = ["renamed", "another architecture", "half of it"]


@pytest.mark.parametrize("how", FOREIGN)
@pytest.mark.parametrize(
    "extra", [{}, {"num_classes": 3}, {"features_only": True}, {"in_chans": 1}]
)
@pytest.mark.parametrize("argument", ["pretrained_cfg_overlay", "pretrained_cfg"])
def test_a_foreign_file_is_refused(
    tmp_path: Path, how: str, extra: dict[str, Any], argument: str
) -> None:
    path = foreign_file(tmp_path / "foreign.safetensors", how)
    extra = extra | {argument: {"file": str(path)}}
    with pytest.raises(CheckpointError, match="does not hold the 120 tensors of resnet18"):
        timm.create_model("resnet18_uscl.us4", pretrained=True, **extra)


def test_a_foreign_state_dict_is_refused(create: Create) -> None:
    overlay = {"state_dict": {"weight": torch.zeros(3)}}
    with pytest.raises(CheckpointError, match="120 missing"):
        create("resnet18_uscl", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=3)


def test_a_foreign_file_with_a_card_is_refused(trial: Card, create: Create, home: Path) -> None:
    """Its digest is that of the card: whoever wrote the card wrote the wrong tensors."""
    from uscl_zoo.records import to_plain, write_yaml

    path = foreign_file(home / ".uscl_zoo" / trial.weights.file, "renamed")
    plain = to_plain(trial)
    plain["weights"] |= {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    write_yaml(home / ".uscl_zoo" / f"{trial.name}.yaml", plain)
    with pytest.raises(CheckpointError, match="does not hold the 120 tensors"):
        create(trial.name, pretrained=True, num_classes=3)


@pytest.mark.parametrize("argument", ["pretrained_cfg_overlay", "pretrained_cfg"])
def test_a_file_of_the_users_own_is_loaded(
    trial: Card, create: Create, tmp_path: Path, argument: str
) -> None:
    path = tmp_path / "mine.safetensors"
    state = timm.create_model("resnet18", num_classes=0).state_dict()
    save_file(state, path)
    model = create(trial.name, pretrained=True, num_classes=3, **{argument: {"file": str(path)}})
    assert torch.equal(model.state_dict()["layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])
    # of a name with a configuration timm passes on no tag, and the rest is the default's
    untagged = create is timm.create_model and argument == "pretrained_cfg"
    of = uscl_zoo.model_info("resnet18_uscl") if untagged else trial
    assert timm.data.resolve_model_data_config(model)["std"] == of.input.std


def test_a_checkpoint_path_with_other_tensors_is_refused(create: Create, tmp_path: Path) -> None:
    path = foreign_file(tmp_path / "foreign.safetensors", "renamed")
    with pytest.raises(RuntimeError, match="Missing key"):
        create("resnet18_uscl", checkpoint_path=str(path))


def test_weights_that_left_the_wheel_say_how_to_make_them_again(create: Create) -> None:
    with pytest.raises(WeightsNotFoundError, match="make it again: uscl prepare, uscl pretrain"):
        create("resnet18_uscl.pocus", pretrained=True)


def test_they_load_where_their_file_is_put(home: Path, create: Create) -> None:
    (home / ".uscl_zoo").mkdir()
    file = PACKAGED["resnet18_uscl.pocus"].weights.file
    shutil.copy(Path(__file__).parents[1] / "weights" / file, home / ".uscl_zoo")
    assert create("resnet18_uscl.pocus", pretrained=True).num_features == 512
