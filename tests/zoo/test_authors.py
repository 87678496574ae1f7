from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import Any

import fresh
import pytest
import timm
import torch
import torchvision
from conftest import make_card
from safetensors.torch import load_file, save_file
from torch import Tensor

import uscl_zoo
from uscl_zoo.cli import main
from uscl_zoo.errors import CardError, CheckpointError, DataError, UsclError
from uscl_zoo.network import load
from uscl_zoo.records import write_yaml
from uscl_zoo.ultrasound.transforms import FrameTransform
from uscl_zoo.zoo import authors, places, weights_cache
from uscl_zoo.zoo.card import Input, read_card
from uscl_zoo.zoo.catalogue import packaged_cards
from uscl_zoo.zoo.checkpoint import metadata_of
from uscl_zoo.zoo.digests import sha256_of

State = dict[str, Tensor]
MODELS = {"resnet18": torchvision.models.resnet18, "resnet50": torchvision.models.resnet50}
#: torchvision's children by their place in the authors' Sequential
PLACES = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
WIDTH = {"resnet18": 512, "resnet50": 2048}
#: The layers of each, as (name, inputs, outputs); None stands for the network's width.
HEADS: dict[str, list[tuple[str, int | None, int | None]]] = {
    "of the training class": [
        ("l1", None, None),
        ("l2", None, 256),
        ("fc", 256, 12),
        ("fc1", None, 64),
        ("fc2", 64, 12),
    ],
    "linear and fc": [("linear", None, None), ("fc", None, 3)],
    "none": [],
}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "own"
    monkeypatch.setenv("USCL_ZOO_WEIGHTS", str(folder))
    monkeypatch.setenv("HOME", str(tmp_path))
    return folder


def network(architecture: str = "resnet18") -> torch.nn.Module:
    """A torchvision network, random, that has seen some batches: no two tensors are alike."""
    torch.manual_seed(7)
    model: torch.nn.Module = MODELS[architecture](weights=None)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_mean"):
                tensor.normal_(0, 0.1)
            elif name.endswith(("running_var", "bn1.weight", "bn2.weight", "bn3.weight")):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("num_batches_tracked"):
                tensor.fill_(8100)
    return model.eval()


def backbone(model: torch.nn.Module) -> State:
    return {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("fc.")}


def as_authors(state: State, heads: str = "of the training class") -> State:
    renamed = {}
    for key, tensor in state.items():
        child, _, rest = key.partition(".")
        renamed[f"features.{PLACES[child]}.{rest}"] = tensor
    width = WIDTH["resnet50" if "layer1.0.conv3.weight" in state else "resnet18"]
    for name, inputs, outputs in HEADS[heads]:
        renamed[f"{name}.weight"] = torch.randn(outputs or width, inputs or width)
        renamed[f"{name}.bias"] = torch.randn(outputs or width)
    return renamed


def as_halves(state: State) -> State:
    return {k: v.half() if v.is_floating_point() else v for k, v in state.items()}


def saved(content: object, path: Path, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def embed_by_torchvision(state: State, frames: Tensor, architecture: str = "resnet18") -> Tensor:
    model: Any = MODELS[architecture](weights=None)
    model.fc = torch.nn.Identity()
    model.load_state_dict(state)
    with torch.inference_mode():
        output: Tensor = model.eval()(frames)
    return output


def embed_by_zoo(name: str, frames: Tensor, by: Callable[..., Any] = timm.create_model) -> Tensor:
    model = by(name, pretrained=True).eval()
    with torch.inference_mode():
        output: Tensor = model(frames)
    return output


FRAMES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))

WRAPPINGS: dict[str, Callable[[State], object]] = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"epoch": 299, "state_dict": state, "optimizer": {"lr": 1e-6}},
    "weight": lambda state: {"weight": state},
    "DataParallel": lambda state: {f"module.{key}": tensor for key, tensor in state.items()},
    "DataParallel in state_dict": lambda state: {
        "state_dict": {f"module.{key}": tensor for key, tensor in state.items()}
    },
}


@pytest.mark.parametrize(
    ("architecture", "wrapping", "heads"),
    [
        *(("resnet18", wrapping, heads) for wrapping in WRAPPINGS for heads in HEADS),
        ("resnet50", "plain", "of the training class"),
        ("resnet50", "DataParallel in state_dict", "linear and fc"),
    ],
)
def test_same_tensors_whatever_the_layout(
    architecture: str, wrapping: str, heads: str, tmp_path: Path
) -> None:
    state = backbone(network(architecture))
    path = saved(WRAPPINGS[wrapping](as_authors(state, heads)), tmp_path / "best_model.pth")
    found = authors.read_backbone(path, architecture)
    assert len(found) == {"resnet18": 120, "resnet50": 318}[architecture]
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)


@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_same_output_as_torchvision_bit_for_bit(
    architecture: str, half: bool, tmp_path: Path
) -> None:
    state = backbone(network(architecture))
    if half:
        state = as_halves(state)
    path = saved(as_authors(state), tmp_path / "best_model.pth")
    name = f"{architecture}_uscl.us4"
    card = authors.import_checkpoint(path, name)
    expected = embed_by_torchvision(state, FRAMES, architecture)
    assert expected.std() > 0.01
    assert torch.equal(embed_by_zoo(name, FRAMES), expected)
    assert torch.equal(embed_by_zoo(name, FRAMES, uscl_zoo.create_model), expected)
    kinds = {tensor.dtype for tensor in load_file(weights_cache.locate(card).path).values()}
    assert kinds == {torch.float16 if half else torch.float32, torch.int64}


def _as_torchvision(model: torch.nn.Module, path: Path) -> Path:
    return saved(model.state_dict(), path)


def _as_timm(model: torch.nn.Module, path: Path) -> Path:
    ours = timm.create_model("resnet18", num_classes=5)
    ours.load_state_dict(backbone(model), strict=False)
    return saved(ours.state_dict(), path)


def _as_safetensors(model: torch.nn.Module, path: Path) -> Path:
    save_file(as_authors(backbone(model)), path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def _as_misnamed_safetensors(model: torch.nn.Module, path: Path) -> Path:
    return _as_safetensors(model, path).rename(path)


def _as_before_torch_1_6(model: torch.nn.Module, path: Path) -> Path:
    return saved(as_authors(backbone(model)), path, zipped=False)


def _as_before_torch_0_4_1(model: torch.nn.Module, path: Path) -> Path:
    state = as_authors(backbone(model))
    return saved({k: v for k, v in state.items() if "num_batches" not in k}, path, zipped=False)


@pytest.mark.parametrize(
    "write",
    [
        _as_torchvision,
        _as_timm,
        _as_safetensors,
        _as_misnamed_safetensors,
        _as_before_torch_1_6,
        _as_before_torch_0_4_1,
    ],
)
def test_same_output_from_other_files(
    write: Callable[[torch.nn.Module, Path], Path], tmp_path: Path
) -> None:
    model = network()
    path = write(model, tmp_path / "best_model.pth")
    # of others than the authors the card of us4 is not, and timm's five classes show nothing
    name = f"resnet18_uscl.{'us4' if 'features.0.weight' in _keys(path) else 'mine'}"
    given = authors.IMAGENET if write is _as_timm else None
    authors.import_checkpoint(path, name, statistics=given)
    expected = embed_by_torchvision(backbone(model), FRAMES)
    assert torch.equal(embed_by_zoo(name, FRAMES), expected)


# ------------------------------------------------------------------- what frames are normalised by


def _keys(path: Path) -> set[str]:
    return set(authors._state_dict(path.read_bytes(), path))


HALVES = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
OWN = (0.1, 0.2, 0.3), (0.3, 0.2, 0.1)


def _timm_state(classes: int) -> State:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state: State = timm.create_model("resnet18", num_classes=classes).state_dict()
    return state


def _torchvision(folder: Path) -> Path:
    return saved(network().state_dict(), folder / "resnet18-f37072fd.pth")


def _timm(folder: Path) -> Path:
    save_file(_timm_state(1000), folder / "a.safetensors", {"format": "pt"})
    return folder / "a.safetensors"


def _lightning(folder: Path) -> Path:
    state = {f"module.{key}": tensor for key, tensor in _timm_state(1000).items()}
    return saved({"epoch": 3, "state_dict": state}, folder / "last.ckpt")


def _authors(folder: Path) -> Path:
    return saved(as_authors(backbone(network())), folder / "best_model.pth")


def _authors_in_parallel(folder: Path) -> Path:
    state = as_authors(backbone(network()), "none")
    return saved({f"module.{key}": tensor for key, tensor in state.items()}, folder / "m.pth")


def _metadata(folder: Path) -> Path:
    save_file(_timm_state(1000), folder / "b.safetensors", metadata_of(*OWN))
    return folder / "b.safetensors"


def _hub(folder: Path) -> Path:
    config = {"pretrained_cfg": {"mean": list(OWN[0]), "std": list(OWN[1])}}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(_timm_state(5), folder / "model.safetensors", {"format": "pt"})
    return folder / "model.safetensors"


SHOWN: dict[Callable[[Path], Path], Any] = {
    _torchvision: authors.IMAGENET,
    _timm: authors.IMAGENET,
    _lightning: authors.IMAGENET,
    _authors: HALVES,
    _authors_in_parallel: HALVES,
    _metadata: OWN,
    _hub: OWN,
}


@pytest.mark.parametrize("make", SHOWN)
def test_the_mean_and_std_that_belong_to_the_weights(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = make(tmp_path)
    card = authors.import_checkpoint(path, "resnet18_uscl.mine")
    assert (card.input.mean, card.input.std) == SHOWN[make]
    transform = uscl_zoo.create_transform("resnet18_uscl.mine")
    assert (transform.mean, transform.std) == SHOWN[make]
    # by the one door the file itself is seen so
    assert load(path, "cpu").transform.mean == SHOWN[make][0]
    # what is said otherwise is a contradiction
    with pytest.raises(DataError, match="by what is given") as caught:
        authors.import_checkpoint(path, "resnet18_uscl.other", statistics=((0.4,) * 3, (0.2,) * 3))
    assert str(path) in str(caught.value)
    again = authors.import_checkpoint(path, "resnet18_uscl.again", statistics=SHOWN[make])
    assert again.input == card.input


@pytest.mark.parametrize("classes", [0, 2, 999, 1001])
def test_what_shows_nothing_needs_them(
    classes: int, tmp_path: Path, own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(_timm_state(classes), tmp_path / "mine.pth")
    words = ["import", str(path), "--as", "resnet18_uscl.mine"]
    for more in ([], ["--mean", "0.4"], ["--std", "0.4"], ["--mean", "a", "--std", "1"]):
        with pytest.raises(SystemExit) as stopped:
            main([*words, *more])
        assert stopped.value.code == 2
        told = capsys.readouterr().err
        assert "--mean" in told and "Traceback" not in told
    assert not own_folder.exists()
    main([*words, "--mean", "0.4", "--std", "0.1,0.2,0.3"])
    assert "mean (0.4, 0.4, 0.4), std (0.1, 0.2, 0.3)" in capsys.readouterr().out
    card = uscl_zoo.model_info("resnet18_uscl.mine")
    assert (card.input.mean, card.input.std) == ((0.4,) * 3, (0.1, 0.2, 0.3))


def test_a_card_of_the_zoo_is_not_for_weights_of_others(tmp_path: Path) -> None:
    path = _torchvision(tmp_path)
    with pytest.raises(DataError, match=r"by the card of resnet18_uscl\.us4 0\.5,0\.5,0\.5"):
        authors.import_checkpoint(path, "resnet18_uscl.us4")


@pytest.mark.parametrize(
    "wrong", [((0.4, 0.4), (0.2, 0.2)), ((0.4,) * 3, (0.2, 0, 0.2)), ((0.4,) * 3, (nan,) * 3)]
)
def test_statistics_that_are_none(wrong: Any, tmp_path: Path) -> None:
    path = saved(_timm_state(2), tmp_path / "mine.pth")
    with pytest.raises(DataError, match="should be three"):
        authors.import_checkpoint(path, "resnet18_uscl.mine", statistics=wrong)


@pytest.mark.parametrize("mean", ["grey", [0.5], [0.5, nan, 0.5], 0.5])
def test_a_configuration_that_is_malformed(mean: Any, tmp_path: Path) -> None:
    path = _hub(tmp_path)
    config = {"pretrained_cfg": {"mean": mean, "std": [0.2] * 3}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json: "):
        authors.import_checkpoint(path, "resnet18_uscl.mine")


@pytest.mark.parametrize("where", ["given", "metadata", "configuration", "card"])
def test_a_mean_of_0_to_255_is_refused(where: str, tmp_path: Path) -> None:
    """It would make nearly the same input of every frame, and nothing would say so."""
    mean, std = (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)
    state = _timm_state(0)
    path = tmp_path / "model.safetensors"
    said = metadata_of(mean, std) if where == "metadata" else None
    save_file(state, path, metadata=said)
    if where == "configuration":
        shape = {"mean": mean, "std": std}
        config = {"architecture": "resnet18", "pretrained_cfg": shape}
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsclError, match=r"mean should be of intensities in 0-1, .* 255"):
        if where == "card":
            card = make_card(input=Input((3, 64, 64), mean, std))
            write_yaml(tmp_path / "resnet18_uscl.trial.yaml", card)
            read_card(tmp_path / "resnet18_uscl.trial.yaml")
        else:
            given = (mean, std) if where == "given" else None
            authors.import_checkpoint(path, "resnet18_uscl.mine", statistics=given)
    with pytest.raises(UsclError, match="mean should be of intensities in 0-1"):
        FrameTransform((32, 32), mean, std)


def test_the_configuration_of_another_architecture_says_nothing(tmp_path: Path) -> None:
    state = _timm_state(0)
    torch.save(state, tmp_path / "pytorch_model.bin")
    config = {"architecture": "resnet50", "pretrained_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"is of a resnet50, and .* holds a resnet18"):
        authors.import_checkpoint(tmp_path / "pytorch_model.bin", "resnet18_uscl.mine")


def test_missing_batch_counts_become_zero(tmp_path: Path) -> None:
    path = _as_before_torch_0_4_1(network(), tmp_path / "old.pth")
    count = authors.read_backbone(path, "resnet18")["bn1.num_batches_tracked"]
    assert count.dtype == torch.int64
    assert count.shape == ()
    assert count == 0


def test_the_card_keeps_what_is_known_and_says_where_it_came_from(
    tmp_path: Path, own_folder: Path
) -> None:
    path = saved(as_authors(backbone(network())), tmp_path / "best_model.pth")
    card = authors.import_checkpoint(path, "resnet18_uscl.us4")
    packaged = packaged_cards()["resnet18_uscl.us4"]
    assert (card.training.sources, card.limits) == (packaged.training.sources, packaged.limits)
    assert card.weights.origin == packaged.weights.origin
    assert card.training.code is not None
    assert sha256_of(path) in card.training.code
    weights = own_folder / "resnet18_uscl.us4.safetensors"
    assert card.weights.sha256 == sha256_of(weights)
    assert card.weights.bytes == weights.stat().st_size
    assert sorted(p.name for p in own_folder.iterdir()) == [weights.name, "resnet18_uscl.us4.yaml"]


def test_a_name_of_ones_own_gets_a_card(tmp_path: Path) -> None:
    path = saved(as_authors(backbone(network())), tmp_path / "hico.pth")
    card = authors.import_checkpoint(
        path, "resnet18_uscl.hico", licence="MIT", summary="HiCo", origin="https://example.org"
    )
    assert (card.licence, card.summary) == ("MIT", "HiCo")
    assert card.weights.origin == "https://example.org"
    assert "resnet18_uscl.hico" in uscl_zoo.list_models(pretrained=True)
    expected = embed_by_torchvision(backbone(network()), FRAMES)
    assert torch.equal(embed_by_zoo("resnet18_uscl.hico", FRAMES), expected)


def test_another_process_finds_it_in_timm_alone(tmp_path: Path, own_folder: Path) -> None:
    path = saved(as_authors(backbone(network())), tmp_path / "best_model.pth")
    authors.import_checkpoint(path, "resnet18_uscl.us4")
    code = (
        "import timm, uscl_zoo;"
        "print(timm.create_model('resnet18_uscl.us4', pretrained=True).conv1.weight.sum().item())"
    )
    found = fresh.run(code)
    assert float(found.stdout) == backbone(network())["conv1.weight"].sum().item()


# ------------------------------------------------------------------------------------ refusals


def refusal(path: Path, name: str = "resnet18_uscl.us4") -> str:
    with pytest.raises(CheckpointError) as caught:
        authors.import_checkpoint(path, name)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def changed(change: Callable[[State], None], path: Path) -> Path:
    state = as_authors(backbone(network()))
    change(state)
    return saved(state, path)


def _drop(state: State) -> None:
    del state["features.4.0.conv1.weight"]


def _add(state: State) -> None:
    state["queue"] = torch.zeros(3)


def _misshape(state: State) -> None:
    state["features.0.weight"] = torch.zeros(64, 1, 7, 7)


def _spoil(state: State) -> None:
    state["features.7.1.bn2.running_mean"][3] = float("nan")


def _overflow(state: State) -> None:
    state["features.0.weight"][0, 0, 0, 0] = float("inf")


def _negate(state: State) -> None:
    state["features.1.running_var"].neg_()


def _widen(state: State) -> None:
    state["features.0.weight"] = state["features.0.weight"].double()


def _count_in_floats(state: State) -> None:
    state["features.1.num_batches_tracked"] = torch.tensor(1.0)


def _sparsify(state: State) -> None:
    state["features.0.weight"] = state["features.0.weight"].to_sparse()


def _name_twice(state: State) -> None:
    state["conv1.weight"] = torch.zeros(64, 3, 7, 7)


def _mix_in_a_list(state: dict[str, Any]) -> None:
    state["features.0.weight"] = [1.0, 2.0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_drop, "1 missing: layer1.0.conv1.weight"),
        (_add, "1 extra: queue"),
        (_misshape, "1 mis-shaped: conv1.weight (64, 1, 7, 7) instead of (64, 3, 7, 7)"),
        (_spoil, "layer4.1.bn2.running_mean has values that are not finite"),
        (_overflow, "conv1.weight has values that are not finite"),
        (_negate, "bn1.running_var has negative values"),
        (_widen, "conv1.weight is torch.float64"),
        (_count_in_floats, "bn1.num_batches_tracked is torch.float32"),
        (_sparsify, "torch.sparse_coo"),
        (_name_twice, "conv1.weight twice"),
        (_mix_in_a_list, "list under 'features.0.weight'"),
    ],
)
def test_wrong_tensors_are_named(
    change: Callable[[State], None], told: str, tmp_path: Path, own_folder: Path
) -> None:
    assert told in refusal(changed(change, tmp_path / "wrong.pth"))
    assert not list(own_folder.glob("*"))


def test_heads_are_listed_apart(tmp_path: Path) -> None:
    message = refusal(changed(_drop, tmp_path / "wrong.pth"))
    assert message.endswith("heads, which are left out: fc, fc1, fc2, l1, l2")
    assert "extra" not in message


def test_the_other_architecture_is_refused(tmp_path: Path) -> None:
    path = saved(as_authors(backbone(network("resnet50"))), tmp_path / "wrong.pth")
    assert "120 tensors of resnet18" in refusal(path)
    path = saved(as_authors(backbone(network())), tmp_path / "wrong.pth")
    assert "318 tensors of resnet50" in refusal(path, "resnet50_uscl.us4")


class _Runs:
    """Its pickle would leave a file behind."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return exec, (f"open({str(self.marker)!r}, 'w')",)


@pytest.mark.parametrize("how", ["torch.save", "old torch.save", "pickle"])
def test_code_in_a_pickle_does_not_run(how: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "evil.pth"
    content = {"state_dict": as_authors(backbone(network())), "args": _Runs(marker)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        saved(content, path, zipped=how == "torch.save")
    assert "code" in refusal(path)
    assert not marker.exists()
    # the trap is a real one
    torch.load(saved(content, path), weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("what", ["absent", "folder", "empty", "text", "list", "number"])
def test_what_is_no_checkpoint_is_refused(what: str, tmp_path: Path) -> None:
    path = tmp_path / "no.pth"
    if what == "folder":
        path.mkdir()
    elif what == "empty":
        path.touch()
    elif what == "text":
        path.write_text("<html>404</html>")
    elif what == "list":
        saved([torch.zeros(3)], path)
    elif what == "number":
        saved(3, path)
    refusal(path)


@pytest.mark.parametrize(
    "name", ["resnet18_uscl", "resnet18", "resnet34_uscl.us4", "resnet18_uscl.../x", "us4"]
)
def test_names_that_are_none_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(CardError, match=re.escape(name)):
        authors.import_checkpoint(tmp_path / "never read", name)


def test_other_weights_are_not_overwritten_unasked(tmp_path: Path) -> None:
    path = saved(as_authors(backbone(network())), tmp_path / "best_model.pth")
    first = authors.import_checkpoint(path, "resnet18_uscl.us4")
    assert authors.import_checkpoint(path, "resnet18_uscl.us4") == first
    other = backbone(network())
    other["conv1.weight"][0, 0, 0, 0] += 1
    path = saved(as_authors(other), tmp_path / "other.pth")
    with pytest.raises(DataError, match="overwrite=True"):
        authors.import_checkpoint(path, "resnet18_uscl.us4")
    assert weights_cache.locate(first).source == places.NAMED_FOLDER
    second = authors.import_checkpoint(path, "resnet18_uscl.us4", overwrite=True)
    assert second.weights.sha256 != first.weights.sha256
    found = timm.create_model("resnet18_uscl.us4", pretrained=True).state_dict()
    assert torch.equal(found["conv1.weight"], other["conv1.weight"])


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    path = saved(as_authors(backbone(network())), tmp_path / "best_model.pth")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / "file"))):
        authors.import_checkpoint(path, "resnet18_uscl.us4", tmp_path / "file")
