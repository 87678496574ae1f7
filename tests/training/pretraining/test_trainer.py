"""What a recipe may ask of a step beyond the paper: starts, teachers, sizes, averages."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import SUBJECT
from safetensors.torch import load_file
from short_runs import CPU, RECIPE, StopAfter, assert_same, run
from torch import Tensor

from uscl_zoo.errors import DataError
from uscl_zoo.signals import Interrupted
from uscl_zoo.training.learning.execution import Execution
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.training.learning.recipe import Recipe, load_recipe, replace
from uscl_zoo.training.preparing.labels import from_name
from uscl_zoo.training.preparing.parts import Sampling
from uscl_zoo.training.preparing.prepare import prepare
from uscl_zoo.training.pretraining import pretrain as module
from uscl_zoo.training.pretraining.export import encoder_of, export
from uscl_zoo.training.pretraining.pretrain import pretrain
from uscl_zoo.training.pretraining.starts import Start, begun_with, load_start
from uscl_zoo.training.pretraining.steps import learning_rate
from uscl_zoo.training.pretraining.trainer import Trainer
from uscl_zoo.zoo.checkpoint import write_backbone

STATISTICS = {"mean": "0.4 0.5 0.6", "std": "0.2 0.2 0.2"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-18 of random weights, in a file that says what belongs to it."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / "start.safetensors"
    state = timm.create_model("resnet18", num_classes=0).state_dict()
    write_backbone(state, path, "resnet18", half=False, metadata=STATISTICS)
    return path


@pytest.fixture(scope="module")
def larger_store(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    """The clips of `small_store` as frames of 48x48."""
    return prepare(
        [clips],
        tmp_path_factory.mktemp("larger") / "store",
        lambda name: from_name(name, subject_pattern=SUBJECT),
        sampling=Sampling(size=48),
        holdout=0.3,
        workers=1,
        progress=False,
    ).store


def stop_after(steps: int, store: FrameStore, folder: Path, recipe: Recipe) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "listening", lambda: nullcontext(StopAfter(steps)))
        with pytest.raises(Interrupted):
            run(store, folder, recipe)


# ------------------------------------------------------------------------- starts and teachers


def test_a_run_begins_with_weights_and_their_statistics(
    weights: Path, small_store: FrameStore, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, init=str(weights), epochs=1, learning_rate=0, final_learning_rate=0)
    state = run(small_store, tmp_path / "run", recipe)
    torch.manual_seed(5)
    expected = timm.create_model("resnet18", num_classes=0).state_dict()
    # with a rate of 0 only batch statistics move
    for key, tensor in encoder_of(state).items():
        if "running" not in key and "num_batches" not in key:
            assert torch.equal(tensor, expected[key]), key
    kept = load_recipe(str(tmp_path / "run" / "recipe.yaml"))
    assert (kept.mean, kept.std) == ((0.4, 0.5, 0.6), (0.2, 0.2, 0.2))
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["start"]["reference"] == str(weights)
    assert len(about["start"]["sha256"]) == 64
    assert about["teachers"] == []


def test_what_a_run_begins_with_is_said(
    weights: Path, small_store: FrameStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for architecture, words in (("resnet18", "that of"), ("resnet50", "grown from")):
        recipe = replace(RECIPE, init=str(weights), architecture=architecture, epochs=1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "listening", lambda: nullcontext(StopAfter(1)))
            with pytest.raises(Interrupted):
                pretrain(recipe, small_store, tmp_path / architecture, execution=CPU)
        out = capsys.readouterr()
        assert f"the encoder begins as {words} {weights} (resnet18)" in out.out + out.err


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50"])
def test_weights_between_start_and_end(
    architecture: str, weights: Path, small_store: FrameStore, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, init=str(weights), architecture=architecture, epochs=1)
    run(small_store, tmp_path / "run", recipe)
    start, name = load_start(str(weights)), f"{architecture}_uscl.x"
    settled = replace(recipe, mean=start.mean, std=start.std)
    began = begun_with(start, settled, small_store, small_store.select("train"))
    files = []
    for share in (0.0, 0.25):
        card = export(tmp_path / "run", name, tmp_path / f"at{share}", start_share=share)
        assert card.training.recipe.get("start_share", 0) == share
        files.append(load_file(tmp_path / f"at{share}" / f"{name}.safetensors"))
    for key, end in files[0].items():
        count = not end.is_floating_point()
        wanted = end.float() if count else 0.75 * end.float() + 0.25 * began[key].float()
        # convolutions are kept in half precision
        assert torch.allclose(files[1][key].float(), wanted, rtol=2e-3, atol=2e-3), key
    with pytest.raises(DataError, match="at least 0 and below 1"):
        export(tmp_path / "run", name, tmp_path / "at1", start_share=1)
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    about["store_digest"] = "0" * 64
    (tmp_path / "run" / "run.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match=r"is not what .* was trained on"):
        export(tmp_path / "run", name, tmp_path / "at2", start_share=0.5)
    assert not (tmp_path / "at2").exists() or not any((tmp_path / "at2").iterdir())


def test_of_random_weights_there_is_no_share(small_store: FrameStore, tmp_path: Path) -> None:
    run(small_store, tmp_path / "run", replace(RECIPE, epochs=1))
    with pytest.raises(DataError, match="began with random weights"):
        export(tmp_path / "run", "resnet18_uscl.x", tmp_path / "out", start_share=0.5)


@pytest.mark.parametrize("term", ["features", "similarities", "stages"])
def test_a_taught_run_resumes_exactly(
    weights: Path, small_store: FrameStore, tmp_path: Path, term: str
) -> None:
    recipe = replace(
        RECIPE,
        init=str(weights),
        teachers=(str(weights),),
        teacher_term=term,
        batch_statistics="frozen" if term == "stages" else "per-view",
        average=0.5,
    )
    whole = run(small_store, tmp_path / "whole", recipe)
    stop_after(4, small_store, tmp_path / "run", recipe)
    resumed = run(small_store, tmp_path / "run", recipe, resume=True)
    assert_same(resumed, whole)
    assert all(row["taught"] > 0 for row in whole["progress"]["history"])
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [teacher["reference"] for teacher in about["teachers"]] == [str(weights)]


def test_stages_of_a_teacher_that_cannot_be_compared(small_store: FrameStore) -> None:
    network = timm.create_model("resnet50", num_classes=0)
    teacher = Start("deep", network, "resnet50", (0.5,) * 3, (0.25,) * 3, "0" * 64, None)
    recipe = replace(RECIPE, teachers=("deep",), teacher_term="stages")
    told = r"^teachers: the stages of deep \(resnet50\) are not comparable with those of a resnet18"
    with pytest.raises(DataError, match=told):
        Trainer(recipe, small_store, CPU, teachers=[teacher])


def test_a_run_without_teachers_has_no_curve_of_them(
    small_store: FrameStore, tmp_path: Path
) -> None:
    history = run(small_store, tmp_path / "run", replace(RECIPE, epochs=1))["progress"]["history"]
    assert "taught" not in history[0]
    assert "labelled" in history[0]


def test_a_start_need_not_be_there_when_a_run_resumes(
    weights: Path, small_store: FrameStore, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(weights.read_bytes())
    recipe = replace(RECIPE, init=str(copy), epochs=1)
    whole = run(small_store, tmp_path / "whole", recipe)
    stop_after(1, small_store, tmp_path / "run", recipe)
    copy.unlink()
    assert_same(run(small_store, tmp_path / "run", recipe, resume=True), whole)


def test_a_teacher_must_stay_the_same(
    weights: Path, small_store: FrameStore, tmp_path: Path
) -> None:
    teacher = tmp_path / "teacher.safetensors"
    teacher.write_bytes(weights.read_bytes())
    recipe = replace(RECIPE, teachers=(str(teacher),), epochs=1)
    stop_after(1, small_store, tmp_path / "run", recipe)
    other = timm.create_model("resnet18", num_classes=0).state_dict()
    write_backbone(other, teacher, "resnet18", half=False, metadata=STATISTICS)
    with pytest.raises(DataError, match=r"^teachers: .* has other weights .* put those back"):
        run(small_store, tmp_path / "run", recipe, resume=True)


def test_a_teacher_pulls_the_features_towards_its_own(
    weights: Path, small_store: FrameStore, tmp_path: Path
) -> None:
    recipe = replace(
        RECIPE,
        teachers=(str(weights),),
        contrast_weight=0,
        class_weight=0,
        teacher_weight=1,
        epochs=12,
        learning_rate=1e-3,
    )
    state = run(small_store, tmp_path / "run", recipe)
    taught = [row["taught"] for row in state["progress"]["history"]]
    assert taught[-1] < 0.7 * taught[0]


# ----------------------------------------------------------------------------------- averages


def test_the_average_is_that_of_the_steps(small_store: FrameStore) -> None:
    trainer = Trainer(replace(RECIPE, average=0.8), small_store, CPU)
    key = "encoder.bn1.running_mean"
    expected = trainer.network.state_dict()
    expected = {k: expected[k].clone() for k in ("encoder.conv1.weight", key)}
    for step in range(3):
        trainer.step()
        keep = min(0.8, (step + 1) / (step + 11))
        now = trainer.network.state_dict()
        expected = {k: keep * v + (1 - keep) * now[k] for k, v in expected.items()}
    assert trainer.average is not None
    for k, v in expected.items():
        assert torch.allclose(trainer.average.state_dict()[k], v, atol=1e-6)
    assert trainer.kept is trainer.average
    assert not torch.equal(trainer.network.state_dict()[key], expected[key])


def test_what_is_exported_is_the_average(small_store: FrameStore, tmp_path: Path) -> None:
    state = run(small_store, tmp_path / "run", replace(RECIPE, average=0.9, epochs=1))
    exported = encoder_of(state)
    assert torch.equal(exported["conv1.weight"], state["average"]["encoder.conv1.weight"])
    assert not torch.equal(exported["conv1.weight"], state["network"]["encoder.conv1.weight"])


# ------------------------------------------------------------------------------ sizes and rates


def test_views_grow_with_the_run(larger_store: FrameStore, tmp_path: Path) -> None:
    recipe = replace(RECIPE, sizes=((32, 0.5), (40, 1.0)))
    trainer = Trainer(recipe, larger_store, CPU)
    seen: list[int] = []

    def note(module: Any, given: tuple[Tensor, ...]) -> None:
        seen.append(given[0].shape[-1])

    trainer.network.encoder.register_forward_pre_hook(note)
    sides = [trainer.side_of(epoch, step) for epoch in range(3) for step in range(3)]
    assert sides == [32] * 5 + [40] * 4
    trainer.step()
    assert set(seen) == {32}
    whole = run(larger_store, tmp_path / "whole", recipe)
    stop_after(4, larger_store, tmp_path / "run", recipe)
    assert_same(run(larger_store, tmp_path / "run", recipe, resume=True), whole)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["size"] == 40


def test_the_last_size_is_that_of_the_run(larger_store: FrameStore) -> None:
    trainer = Trainer(replace(RECIPE, sizes=((32, 1.0),)), larger_store, CPU)
    assert (trainer.size, trainer.side) == (32, 48)
    shown: list[int] = []
    trainer.network.encoder.register_forward_pre_hook(lambda m, x: shown.append(x[0].shape[-1]))
    trainer.validate()
    assert set(shown) == {32}


def test_views_are_not_larger_than_the_frames(small_store: FrameStore) -> None:
    with pytest.raises(DataError, match=r"sizes: 224 is larger than the .* prepare it at 224"):
        Trainer(replace(RECIPE, sizes=((224, 1.0),)), small_store, CPU)


def test_a_rate_by_steps_rises_and_falls() -> None:
    recipe = replace(
        Recipe(),
        schedule="steps",
        warmup=0.1,
        epochs=10,
        learning_rate=1.0,
        final_learning_rate=0.0,
        constant_epochs=0,
    )
    rates = [learning_rate(recipe, epoch, step, 10) for epoch in range(10) for step in range(10)]
    assert rates[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert rates[10] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[-1] < 1e-3


# ---------------------------------------------------------------------------------- precision


def test_a_resumed_run_may_go_on_in_another_precision(
    small_store: FrameStore, tmp_path: Path
) -> None:
    stop_after(4, small_store, tmp_path / "run", replace(RECIPE, precision="bf16"))
    run(small_store, tmp_path / "run", replace(RECIPE, precision="float32"), resume=True)
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["precision"] == "float32"
    assert about["earlier_precisions"] == [{"precision": "bf16", "epochs": 1}]
    card = export(tmp_path / "run", "resnet18_uscl.trial", tmp_path / "zoo")
    assert card.training.recipe["precision"] == "bf16 to epoch 1, then float32"


def test_a_slow_precision_is_said(
    small_store: FrameStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = replace(RECIPE, precision="bf16", epochs=1)
    stop_after(1, small_store, tmp_path / "run", recipe)
    for has, said in (({"avx2": True}, True), ({"amx_bf16": True}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: has)
        capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "listening", lambda: nullcontext(StopAfter(1)))
            with pytest.raises(Interrupted):
                pretrain(recipe, small_store, tmp_path / "run", resume=True, execution=CPU)
        out = capsys.readouterr()
        assert ("resume with precision=float32" in out.out + out.err) == said


# ---------------------------------------------------------------------------------- compiling


@pytest.mark.slow
def test_each_size_is_compiled_once(
    larger_store: FrameStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An odd batch is done as it is: compiled, it would hold a run up for a minute or two."""
    recipe = replace(RECIPE, batch_size=5, epochs=4, sizes=((32, 0.5), (48, 1.0)))
    plain = Trainer(recipe, larger_store, CPU)
    assert [len(b) for b in plain.tables(0).batches] == [5, 5, 2]
    compiled: list[int] = []
    compile_one = torch.compile

    def counting(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        compiled.append(len(inputs))
        return graph.forward

    def compiling(model: Any, **options: Any) -> Any:
        return compile_one(model, backend=counting, **options)

    monkeypatch.setattr(torch, "compile", compiling)
    torch._dynamo.reset()
    trainer = Trainer(recipe, larger_store, Execution(CPU.device, compiled=True))
    counts, said = [], []
    for epoch in range(4):
        for one in (plain, trainer):
            one.progress.epoch, one.progress.step = epoch, 0
        for _ in range(3):
            said.append(trainer.compiles_next)
            plain.step()
            trainer.step()
            counts.append(len(compiled))
    # in the first step of either size, and never again
    first = counts[0]
    assert counts == [first] * 6 + [2 * first] * 6
    assert said == [True, *[False] * 5, True, *[False] * 5]
    assert trainer.progress.sums == pytest.approx(plain.progress.sums, rel=1e-4)


@pytest.mark.slow
def test_the_bar_says_that_a_step_is_compiled(
    small_store: FrameStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    compile_one = torch.compile

    def compiling(model: Any, **options: Any) -> Any:
        return compile_one(model, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", compiling)
    torch._dynamo.reset()
    recipe = replace(RECIPE, epochs=1)
    for compiled in (True, False):
        execution = Execution(CPU.device, compiled=compiled)
        pretrain(recipe, small_store, tmp_path / str(compiled), execution=execution)
        assert ("compiling, once for each size" in capsys.readouterr().err) == compiled


# ------------------------------------------------------------------------------- left-out sources


def test_a_source_that_the_store_lacks(small_store: FrameStore) -> None:
    with pytest.raises(DataError, match=r"leave_out: .* has no source 'aul'"):
        Trainer(replace(RECIPE, leave_out=("aul",)), small_store, CPU)


def test_a_start_of_another_architecture_is_grown(small_store: FrameStore) -> None:
    half = (0.5, 0.5, 0.5)
    network = timm.create_model("resnet18", num_classes=0)
    start = Start("x", network, "resnet18", half, half, "0" * 64, None)
    recipe = replace(RECIPE, architecture="resnet50")
    begun = Trainer(recipe, small_store, CPU, start=start).network.encoder.state_dict()
    state = network.state_dict()
    assert torch.equal(begun["conv1.weight"], state["conv1.weight"])
    # its first 1x1 convolution hands the stream on, and the 3x3 one behind it is the shallow one's
    assert torch.equal(begun["layer1.0.conv1.weight"][:, :, 0, 0], torch.eye(64))
    assert torch.equal(begun["layer1.0.conv2.weight"], state["layer1.0.conv1.weight"])
    again = Trainer(recipe, small_store, CPU, start=start).network.encoder.state_dict()
    assert all(torch.equal(again[key], tensor) for key, tensor in begun.items())
