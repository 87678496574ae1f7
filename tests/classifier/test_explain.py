import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf
from torch import Tensor, nn

from uscl_zoo.cli import main
from uscl_zoo.embedding.extraction import embed
from uscl_zoo.errors import CardError, DataError
from uscl_zoo.ultrasound.phantom import lung_clip

pytest.importorskip("uscl_zoo.ultrasound.beam")

from uscl_zoo.classifier.gradcam import Explanation, explain, heat_maps
from uscl_zoo.classifier.prediction import predict
from uscl_zoo.classifier.shortcuts import shortcut
from uscl_zoo.network import load

WHERE = {"input_size": (3, 160, 160), "mean": (0.5,) * 3, "std": (0.5,) * 3}


class Brightness(nn.Module):
    """A network whose evidence is known: of `bright` the bright places, of `dark` the dark ones."""

    num_features, num_classes = 2, 2

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_cfg = {**WHERE, "label_names": ["dark", "bright"]}
        self.conv = nn.Conv2d(3, 2, 1)
        self.head = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.conv.weight[0] = -1 / 6
            self.conv.weight[1] = 1 / 6
            self.conv.bias.fill_(0.5)  # type: ignore[union-attr]
            self.head.weight.copy_(4 * torch.eye(2))

    def forward_features(self, inputs: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(self.conv(inputs), 16)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = features.mean((2, 3))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(inputs))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight frames of the phantom."""
    frames, _ = lung_clip(seconds=0.8, rate=10, size=(240, 240))
    path = tmp_path_factory.mktemp("clip") / "phantom.gif"
    first, *rest = (Image.fromarray(frame) for frame in frames)
    first.save(path, save_all=True, append_images=rest, duration=100)
    return path


@pytest.fixture(scope="module")
def still(clip: Path) -> Path:
    path = clip.with_name("still.png")
    with Image.open(clip) as image:
        image.convert("RGB").save(path)
    return path


@pytest.fixture(scope="module")
def explanation(clip: Path) -> Explanation:
    return explain(Brightness(), clip, "bright", rate=10, progress=False)


def test_evidence_is_where_it_should_be(explanation: Explanation) -> None:
    assert explanation.label == "bright"
    assert len(explanation) == 8
    assert explanation.times == pytest.approx(np.arange(8) / 10)
    for i, frame in enumerate(explanation.frames):
        heat = explanation.heat[i]
        assert heat.shape == (frame.height, frame.width)
        grey = np.asarray(frame.convert("L"), float)
        inside = grey > 0
        # cells of 16 pixels of 160 against the brightness within them
        small = [
            np.asarray(Image.fromarray(a.astype(np.float32)).resize((10, 10), 5))[1:-1, 3:-3]
            for a in (heat, grey)
        ]
        assert np.corrcoef(small[0].ravel(), small[1].ravel())[0, 1] > 0.8
        assert heat[inside].mean() > heat[~inside].mean()


def test_nothing_is_drawn_outside_the_beam(explanation: Explanation) -> None:
    left, top, right, bottom = explanation.beam.box
    assert explanation.beam.kind == "curved"
    assert not explanation.beam.mask.all()
    inside = explanation.beam.mask[top:bottom, left:right]
    assert explanation.frames[0].size == inside.shape[::-1]
    for heat, frame in zip(explanation.heat, explanation.frames, strict=True):
        assert not heat[~inside].any()
        assert not np.asarray(frame)[~inside].any()
    # the corners of the frame are dark, so most evidence for darkness is there
    assert 0 < explanation.outside < 0.7


def test_frames_share_a_scale(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (160, 160), (level,) * 3) for level in (60, 120, 240)]
    path = tmp_path / "steps.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    found = explain(Brightness(), path, "bright", rate=10, progress=False)
    assert found.beam.kind == "unknown"
    assert "no beam detected" in found.subtitle
    assert found.heat.max(axis=(1, 2)) == pytest.approx([0.25, 0.5, 1], abs=0.02)


def test_the_most_probable_class_is_explained(clip: Path) -> None:
    found = explain(Brightness(), clip, rate=10, progress=False)
    assert found.label == "dark"
    other = explain(Brightness(), clip, "bright", rate=10, progress=False)
    assert found.scores + other.scores == pytest.approx(np.ones(8))
    assert found.title == (
        f"dark: probability {found.scores.mean():.2f}; whether it is like the training images is "
        "not known"
    )


def test_as_grad_cam_is_defined(still: Path) -> None:
    """Where the map is averaged and weighted by a matrix, Grad-CAM has a closed form."""
    torch.manual_seed(0)
    network: Any = timm.create_model("test_resnet", num_classes=3)
    network.eval()
    loaded = load(network)
    frames = [loaded.transform.resize(Image.open(still))]
    maps = heat_maps(loaded, frames, 1, progress=False)
    with torch.no_grad():
        features = network.forward_features(loaded.transform(Image.open(still))[None])
    weights = network.get_classifier().weight[1]
    expected = torch.einsum("k,nkhw->nhw", weights, features).relu() / features[0, 0].numel()
    assert maps.shape == features.shape[:1] + features.shape[2:]
    assert expected.max() > 0
    assert np.allclose(maps, expected.detach().numpy(), rtol=1e-4, atol=1e-7)


def test_without_a_classifier(clip: Path, still: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=0)
    found = explain(network, clip, rate=10, progress=False)
    assert found.label is None
    assert found.title == "No classifier: similarity to the clip's mean embedding"
    assert (found.scores > 0.9).all()
    assert found.heat.max() == 1
    single = explain(network, still, rate=10, progress=False)
    assert single.title == "No classifier: similarity to its own embedding"
    # the gradient of a cosine would vanish
    assert single.heat.max() == 1
    with pytest.raises(DataError, match=r"no class 'ill'.*no classifier"):
        explain(network, still, "ill", progress=False)


def test_the_network_is_left_as_it_was(still: Path) -> None:
    network: Any = timm.create_model("test_resnet", num_classes=2).train()
    network.get_classifier().weight.grad = torch.ones_like(network.get_classifier().weight)
    explain(network, still, progress=False)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert (network.get_classifier().weight.grad == 1).all()
    assert not any(module._forward_hooks for module in network.modules())


def test_other_networks_and_classes(still: Path) -> None:
    with pytest.raises(DataError, match="no class 'grey'; its classes are dark, bright"):
        explain(Brightness(), still, "grey")
    with pytest.raises(DataError, match="needs a convolutional network"):
        explain(timm.create_model("test_vit", num_classes=2), still, progress=False)
    with pytest.raises(DataError, match="one output"):
        explain(timm.create_model("test_resnet", num_classes=1), still)


def test_a_model_of_ones_own(still: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network: Any = timm.create_model("test_resnet", num_classes=2)
    nn.init.normal_(network.get_classifier().weight)
    save_for_hf(network, str(tmp_path), {"label_names": ["ill", "well"]}, safe_serialization=True)
    raw = explain(tmp_path, still, "well", progress=False)
    assert raw.title.startswith("well: probability")
    # what makes answers of logits belongs to a card, and weights of which the digest is known
    (tmp_path / "predict.json").write_text(json.dumps({"temperature": 3.0}))
    with pytest.raises(CardError, match="should hold one card"):
        explain(tmp_path, still, "well", progress=False)


def test_it_says_what_predict_says(tuned: Path, classes: Path, tmp_path: Path) -> None:
    photograph = tmp_path / "house.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(
        photograph
    )
    for path, unlike in ((classes / "Cov" / "3.png", False), (photograph, True)):
        (answer,) = predict(tuned, path, device="cpu", progress=False).clips
        label = answer.best
        found = explain(tuned, path, label, device="cpu", progress=False)
        assert found.scores[0] == pytest.approx(answer.probabilities[label], abs=1e-5)
        assert found.calibrated
        assert found.unlike == answer.unlike == unlike
        assert found.title.endswith("unlike the training images") == unlike


def test_a_strip(explanation: Explanation, still: Path, tmp_path: Path) -> None:
    path = explanation.save(tmp_path / "new" / "strip.png")
    with Image.open(path) as picture:
        assert 2300 < picture.width <= 2400
        pixels = np.asarray(picture).astype(int)
    # colour where the evidence is, and none in the frames above
    coloured = np.ptp(pixels, axis=2) > 40
    assert coloured[pixels.shape[0] // 2 :].any()
    assert not coloured[: pixels.shape[0] // 3].any()
    single = explain(Brightness(), still, progress=False)
    assert single.save(tmp_path / "still.png").is_file()
    with pytest.raises(DataError, match="makes no film"):
        single.save(tmp_path / "still.mp4")
    with pytest.raises(DataError, match="should end in"):
        single.save(tmp_path / "still.jpg")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["new", "still.png"]


def test_films(explanation: Explanation, tmp_path: Path) -> None:
    import av

    with av.open(str(explanation.save(tmp_path / "film.mp4"))) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.pix_fmt == "yuv420p"
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(0)]
    assert [time for time, _ in frames] == pytest.approx(np.arange(8) / 10, abs=1e-3)
    assert np.abs(frames[0][1].astype(int) - frames[7][1]).mean() > 1
    with Image.open(explanation.save(tmp_path / "film.gif")) as picture:
        assert picture.n_frames == 8  # type: ignore[attr-defined]
        assert picture.info["duration"] == 100


def test_the_command(
    clip: Path,
    still: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_for_hf(
        timm.create_model("test_resnet", num_classes=2),
        str(tmp_path / "m"),
        safe_serialization=True,
    )
    monkeypatch.chdir(tmp_path)
    main(["explain", "m", str(still)])
    assert "class " in capsys.readouterr().out
    main(["explain", "m", str(clip), "--class", "class 1", "--rate", "2"])
    assert "class 1: probability 0." in capsys.readouterr().out
    made = ["phantom_explained.mp4", "phantom_explained.png", "still_explained.png"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m", *made]
    for wrong, words in (
        (["m", str(still), "-o", "x.bmp"], "x.bmp: the name should end in"),
        (["m", str(still), "--class", "ill"], "no class 'ill'"),
        (["n", str(still)], "no model 'n'"),
        (["m", "absent.png"], "absent.png: no such file"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["explain", *wrong])
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert words in line


def test_whatever_is_imported_first() -> None:
    import uscl_zoo.classifier.gradcam
    import uscl_zoo.classifier.shortcuts
    import uscl_zoo.embedding.extraction

    assert uscl_zoo.explain is uscl_zoo.classifier.gradcam.explain is explain
    assert uscl_zoo.shortcut is uscl_zoo.classifier.shortcuts.shortcut
    assert uscl_zoo.embed is uscl_zoo.embedding.extraction.embed


# ----------------------------------------------------------------- whatever the caller has switched


CONTEXTS: dict[str, tuple[Callable[[], Any], ...]] = {
    "no_grad": (torch.no_grad,),
    "inference_mode": (torch.inference_mode,),
    "autocast": (lambda: torch.autocast("cpu", torch.bfloat16),),
    "autocast and no_grad": (lambda: torch.autocast("cpu", torch.bfloat16), torch.no_grad),
}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("classes", [0, 2])
def test_no_mode_of_the_caller_matters(context: str, classes: int, still: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=classes)
    usual = explain(network, still, progress=False)
    with contextlib.ExitStack() as stack:
        for enter in CONTEXTS[context]:
            stack.enter_context(enter())
        found = explain(network, still, progress=False)
        embedded = embed(network, still, progress=False)
    assert np.array_equal(found.heat, usual.heat) and found.scores == usual.scores
    assert np.array_equal(embedded.features, embed(network, still, progress=False).features)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_of_half_precision(dtype: torch.dtype, still: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=2)
    usual = explain(network, still, progress=False)
    found = explain(network.to(dtype), still, progress=False)
    assert next(network.parameters()).dtype == dtype
    assert found.heat == pytest.approx(usual.heat, abs=0.1)
    assert found.scores == pytest.approx(usual.scores, abs=0.01)
    moved = [case.moved for case in shortcut(network, [still], progress=False).cases]
    assert np.isfinite(moved).all()


def test_a_network_that_was_made_in_inference_mode(still: Path) -> None:
    with torch.inference_mode():
        network = timm.create_model("test_resnet", num_classes=2)
    assert explain(network, still, progress=False).heat.max() == 1


# ------------------------------------------------------------------------------- several sizes


def stills(folder: Path, *sizes: tuple[int, int]) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i, (width, height) in enumerate(sizes):
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"f{i}.png")
    return folder


@pytest.mark.parametrize("sizes", [((60, 40), (40, 60), (90, 90)), ((60, 40), (60, 40), (90, 90))])
def test_a_folder_of_stills_is_no_clip(
    sizes: tuple[tuple[int, int], ...],
    tuned: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = stills(tmp_path / "stills", *sizes)
    outputs = {
        "embed": ["--model", str(tuned), str(folder), "-o", f"{tmp_path}/o.csv"],
        "predict": [str(tuned), str(folder), "-o", f"{tmp_path}/p.csv"],
        "shortcut": [str(tuned), str(folder), "-o", f"{tmp_path}/s.html"],
    }
    for command, words in outputs.items():
        main([command, *words])
    assert "3 frames of 3 files" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["explain", str(tuned), str(folder), "-o", f"{tmp_path}/e.png"])
    assert stopped.value.code == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.endswith(
        f"{folder}: holds 3 sources, which are no clip; explain one of them, as {folder / 'f0.png'}"
    )
    # of one it is that one
    for file in ("f1.png", "f2.png"):
        (folder / file).unlink()
    main(["explain", str(tuned), str(folder), "-o", f"{tmp_path}/e.png"])


def test_pages_of_several_sizes_have_no_beam_in_common(tmp_path: Path) -> None:
    folder = stills(tmp_path / "stills", *[(60, 40)] * 40, (90, 90))
    first, *rest = (Image.open(folder / f"f{i}.png") for i in range(41))
    path = tmp_path / "pages.tiff"
    for some in (rest, rest[-1:]):
        first.save(path, save_all=True, append_images=some)
        with pytest.raises(DataError, match=r"pages\.tiff: .*(of several sizes|in common)"):
            explain(Brightness(), path, progress=False)
        assert embed(Brightness(), path, progress=False).features.shape == (len(some) + 1, 2)
    # of the last one: of the first, the odd page is behind the frames it looks at
    with pytest.raises(DataError, match="of several sizes"):
        shortcut(Brightness(), path, progress=False)
