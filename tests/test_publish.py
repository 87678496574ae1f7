from __future__ import annotations

import http.server
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import timm
import torch
import trial
from hub import Hub
from huggingface_hub import ModelCard
from PIL import Image
from timm.models import PretrainedCfg

import uscl_zoo
from uscl_zoo import modelcard
from uscl_zoo import publish as publishing
from uscl_zoo.errors import CardError, DataError, DigestError, HubError
from uscl_zoo.records import to_plain, write_yaml
from uscl_zoo.zoo.card import Card

REPO = f"me/{trial.NAME}"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder, with the trial checkpoint in it."""
    folder = tmp_path / "own"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USCL_ZOO_WEIGHTS", str(folder))
    trial.write(folder)
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A repository's folder; its card and weights are in the folder `own` beside it."""
    folder = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        # what is remembered of files that are seconds old, on a slow machine
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("USCL_ZOO_WEIGHTS", str(folder / "own"))
        trial.write(folder / "own")
        yield publishing.build(trial.NAME, folder / "repository", REPO)


def own_card(built: Path) -> Card:
    return uscl_zoo.zoo.card.read_card(built.parent / "own" / f"{trial.NAME}.yaml")


# ------------------------------------------------------------------------------ what is written


def test_a_repository_is_four_files(built: Path) -> None:
    names = {path.name for path in built.iterdir()}
    assert names == {"model.safetensors", "config.json", "README.md", "similarity.png"}
    assert sorted(p.name for p in built.parent.iterdir()) == ["own", "repository"]


def test_the_weights_are_those_of_the_card_byte_for_byte(built: Path) -> None:
    data = (built / "model.safetensors").read_bytes()
    assert data == (built.parent / "own" / f"{trial.NAME}.safetensors").read_bytes()
    assert sha256(data).hexdigest() == own_card(built).weights.sha256


def test_config_has_only_what_timm_knows_and_no_model_args(built: Path) -> None:
    config = json.loads((built / "config.json").read_text())
    assert (config["architecture"], config["num_classes"]) == ("resnet18", 0)
    assert "model_args" not in config
    model = timm.create_model("resnet18", num_classes=0)
    assert config["num_features"] == model.num_features
    # unknown keys raise
    cfg = PretrainedCfg(**config["pretrained_cfg"])
    asked = trial.CARD.input
    assert tuple(cfg.input_size) == asked.size
    assert (tuple(cfg.mean), tuple(cfg.std)) == (asked.mean, asked.std)
    assert (cfg.interpolation, cfg.crop_mode, cfg.crop_pct) == ("bilinear", "squash", 1.0)
    assert (cfg.first_conv, cfg.classifier) == ("conv1", "fc")


@pytest.mark.parametrize("architecture", modelcard._WIDTHS)
def test_widths_are_the_networks(architecture: str) -> None:
    width = timm.create_model(architecture, num_classes=0).num_features
    assert modelcard._WIDTHS[architecture] == width


def test_the_hub_reads_the_model_cards_metadata(built: Path) -> None:
    data = ModelCard.load(built / "README.md").data
    assert data.license == "cc-by-nc-sa-4.0"
    assert data.library_name == "timm"
    assert {"timm", "ultrasound"} <= set(data.tags)
    # the difference to another model is no result of this one
    assert data.eval_results is not None
    (result,) = data.eval_results
    assert result.dataset_name == "POCUS, 13 subjects"
    assert result.metric_type == "balanced_accuracy"
    assert result.metric_value == 0.625
    assert result.metric_args["interval"] == [0.5, 0.75]


@pytest.mark.parametrize(
    "told",
    [
        "cc-by-nc-sa-4.0",
        "CC BY-NC-SA 4.0 87",
        "87 videos, 1,234 frames, 61 subjects",
        "| 0.625 | 0.500 to 0.750 (95 %, bootstrap over subjects) |",
        "difference to ImageNet | clip | -0.125 | -0.250 to +0.062",
        "`uscl probe`",
        "- Knows nothing.",
        "never trained on: the frames of 2 subjects",
        f'timm.create_model("hf-hub:{REPO}", pretrained=True)',
        f'AutoModel.from_pretrained("{REPO}")',
        f'uscl_zoo.create_model("{trial.NAME}", pretrained=True)',
        "10.1007/978-3-030-87237-3_60",
        "Born et al., 2021",
        "](similarity.png)",
        "512 numbers",
    ],
)
def test_the_model_card_tells(built: Path, told: str) -> None:
    assert told in (built / "README.md").read_text(encoding="utf-8")


def test_the_figure_is_a_picture(built: Path) -> None:
    with Image.open(built / "similarity.png") as picture:
        picture.load()
        assert min(picture.size) > 500


@pytest.mark.parametrize(
    ("licence", "on_the_hub", "name"),
    [
        ("MIT", "mit", None),
        ("Apache-2.0", "apache-2.0", None),
        ("CC-BY-NC-4.0", "cc-by-nc-4.0", None),
        ("LicenseRef-Hospital A", "other", "licenseref-hospital-a"),
        ("GPL-3.0-only", "other", "gpl-3.0-only"),
    ],
)
def test_licences_are_in_the_hubs_words(licence: str, on_the_hub: str, name: str | None) -> None:
    card = replace(trial.CARD, licence=licence)
    data = ModelCard(modelcard.model_card(card, REPO)).data
    assert (data.get("license"), data.get("license_name")) == (on_the_hub, name)


def test_a_card_that_says_little_is_printed_too() -> None:
    bare = replace(
        trial.CARD,
        metrics=(),
        training=uscl_zoo.zoo.card.Training(method="uscl", sources=()),
    )
    text = modelcard.model_card(bare, REPO)
    assert "None" not in text.replace("[None]", "")
    assert "model-index" not in text


def test_what_is_not_uscl_is_not_told_to_be(tmp_path: Path) -> None:
    folder = publishing.build("resnet18_imagenet.mit", tmp_path / "repository")
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "MICCAI" not in text
    assert "ImageNet Large Scale Visual Recognition Challenge" in text
    assert "converted from: ResNet18.onnx" in text
    assert "May they go into a product? Yes, under MIT" in text
    # of counts that nobody knows; `[None]` stands in the code to copy
    assert "None" not in text.replace("[None]", "")
    assert "ultrasound" not in (ModelCard(text).data.get("tags") or [])
    licence = folder / "LICENSE.resnet18_imagenet"
    assert "Permission is hereby granted" in licence.read_text(encoding="utf-8")
    assert f"`{licence.name}`" in text


# ------------------------------------------------------------------------------------- refusals


def test_weights_without_a_licence_are_not_published(own: Path, tmp_path: Path) -> None:
    trial.write(own, replace(trial.CARD, licence=None))
    with pytest.raises(CardError, match=f"{trial.NAME}: its card states no licence"):
        publishing.build(trial.NAME, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_a_folder_in_use_is_left_alone(own: Path, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.tex").touch()
    for taken in ("used", "used/thesis.tex"):
        with pytest.raises(DataError, match=re.escape(str(tmp_path / taken))):
            publishing.build(trial.NAME, tmp_path / taken)
    assert [p.name for p in (tmp_path / "used").iterdir()] == ["thesis.tex"]


def test_a_folder_that_cannot_be_is_named(own: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        publishing.build(trial.NAME, tmp_path / "file" / "repository")


def test_damaged_weights_leave_nothing_behind(own: Path, tmp_path: Path) -> None:
    weights = own / f"{trial.NAME}.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(DigestError):
        publishing.build(trial.NAME, tmp_path / "repository")
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


@pytest.mark.parametrize("namespace", ["", "a/b", "../me", "me you", "https://huggingface.co/me"])
def test_namespaces_that_are_none(own: Path, namespace: str) -> None:
    with pytest.raises(DataError, match="user or organisation"):
        publishing.publish(trial.NAME, namespace, dry_run=True)


# -------------------------------------------------------------------------- against a live Hub

#: As `uscl publish` does it; a process of its own, as the client reads HF_* when imported.
PUBLISH = f"""
import json, sys
from uscl_zoo import demo, publish
from uscl_zoo.ultrasound.phantom import lung_clip
demo.lung_clip = lambda: lung_clip(rate=2.0)
for times in range(2):
    done = publish.publish({trial.NAME!r}, "me")
    print(json.dumps({{"commit": done.commit, "text": str(done), "files": done.files}}))
"""

LOAD = """
import sys, timm, torch, uscl_zoo
model = timm.create_model(sys.argv[1], pretrained=True)
torch.save(model.state_dict(), sys.argv[2])
"""


@pytest.mark.slow
def test_published_pinned_fetched_loaded_and_offline(own: Path, tmp_path: Path) -> None:
    card = uscl_zoo.model_info(trial.NAME)
    with Hub() as hub:
        settings: dict[str, object] = {**hub.environment(), "HOME": tmp_path}
        settings["HF_HOME"] = tmp_path / "hf"
        settings["USCL_ZOO_WEIGHTS"] = own
        printed = trial.python("-c", PUBLISH, environment=settings)
        first, second = map(json.loads, printed.splitlines())
        commit = first["commit"]
        assert re.fullmatch("[0-9a-f]{40}", commit)
        assert f"hub_repo: {REPO}" in first["text"]
        assert f"revision: {commit}" in first["text"]
        repo = hub.repos[REPO]
        # the server's first commit of a new repository, and ours; the second time nothing had
        # changed, and nothing was committed
        assert len(repo.commits) == 2
        assert second["commit"] == commit
        assert repo.refs["main"] == commit
        pushed = {k: len(b.data) for k, b in repo.commits[commit].files.items() if k[0] != "."}
        assert pushed == first["files"]

        pinned = replace(card, weights=replace(card.weights, hub_repo=REPO, revision=commit))
        elsewhere = tmp_path / "elsewhere"
        write_yaml(elsewhere / f"{trial.NAME}.yaml", pinned)
        settings = {
            **hub.environment(),
            "HOME": tmp_path / "another",
            "HF_HOME": tmp_path / "empty",
            "USCL_ZOO_WEIGHTS": elsewhere,
        }
        got = tmp_path / "got.pt"
        trial.python("-c", LOAD, trial.NAME, str(got), environment=settings)
        assert len(hub.downloads()) == 1
    # the server is gone
    again = tmp_path / "again.pt"
    settings["HF_HUB_OFFLINE"] = 1
    trial.python("-c", LOAD, trial.NAME, str(again), environment=settings)
    expected = uscl_zoo.create_model(trial.NAME, pretrained=True).state_dict()
    for path in (got, again):
        loaded = torch.load(path, weights_only=True)
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[key], expected[key]) for key in expected)


def test_a_dry_run_asks_nobody_and_keeps_the_folder(own: Path, tmp_path: Path) -> None:
    look = tmp_path / "look"
    with Hub() as hub:
        done = publishing.publish(trial.NAME, "me", True, endpoint=hub.endpoint, folder=look)
        assert hub.requests == []
    assert done.commit is None
    assert f"{look}: would be pushed to {REPO}" in str(done)
    assert done.files == {path.name: path.stat().st_size for path in look.iterdir()}
    for name, size in done.files.items():
        assert f"{size:,}  {name}" in str(done)


class _Refusing(http.server.BaseHTTPRequestHandler):
    status = 403

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.dumps({"error": "no"}).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (401, "hf auth login"),
        (403, "may not write there"),
        (404, "no such namespace"),
        (500, "try again later"),
        (None, "cannot be reached"),
    ],
)
def test_a_hub_that_says_no(status: int | None, told: str, built: Path) -> None:
    handler = type("Handler", (_Refusing,), {"status": status})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    if status is None:
        server.server_close()
    else:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        with pytest.raises(HubError) as refusal:
            publishing._push(REPO, built, trial.CARD, "hf_some_token", endpoint)
    finally:
        if status is not None:
            server.shutdown()
            server.server_close()
    message = str(refusal.value)
    assert told in message
    assert REPO in message
    assert "\n" not in message
    assert "hf_some_token" not in message


PUSH = f"""
import sys
from pathlib import Path
import trial
from uscl_zoo import publish
from uscl_zoo.errors import HubError
for token in (None, "wrong", "right"):
    try:
        print(publish._push({REPO!r}, Path(sys.argv[1]), trial.CARD, token, None))
    except HubError as error:
        print(error)
"""


def test_publishing_needs_the_right_token(built: Path, tmp_path: Path) -> None:
    with Hub(token="right") as hub:
        environment = {**hub.environment(), "HOME": str(tmp_path)}
        del environment["HF_TOKEN"]
        here = Path(__file__).parent
        printed = trial.python("-c", PUSH, str(built), environment=environment, path=here)
        without, wrong, right = printed.splitlines()
        assert "hf auth login" in without
        assert "hf auth login" in wrong
        assert hub.repos[REPO].refs["main"] == right


def test_cards_on_either_side_are_the_same(built: Path) -> None:
    # what a reader of the repository can check against the card
    written = json.loads((built / "config.json").read_text())
    assert written == to_plain(modelcard.config(own_card(built)))
