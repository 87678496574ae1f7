"""Load a published repository as somebody who has no uscl-zoo; a script for test_loading.py
and test_published.py.

    python tests/plain.py REPOSITORY FOLDER FRAMES OUTPUT ROW...

REPOSITORY is on the Hub, FOLDER holds the same files. Each row writes what the network makes of the
frames to OUTPUT/ROW.pt; one that fails writes its error to OUTPUT/ROW.txt.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

# makes importing it an error, in whatever is imported below
sys.modules["uscl_zoo"] = None  # type: ignore[assignment]

import torch  # noqa: E402
from torch import Tensor  # noqa: E402


def timm_hub(repo: str, folder: str, frames: Tensor) -> Any:
    import timm

    return timm.create_model(f"hf-hub:{repo}", pretrained=True).eval()(frames)


def timm_local_dir(repo: str, folder: str, frames: Tensor) -> Any:
    import timm

    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(frames)


def timm_classifier(repo: str, folder: str, frames: Tensor) -> Any:
    import timm

    model: Any = timm.create_model(f"hf-hub:{repo}", pretrained=True, num_classes=3).eval()
    assert model(frames).shape == (len(frames), 3)
    return model.forward_head(model.forward_features(frames), pre_logits=True)


def timm_features(repo: str, folder: str, frames: Tensor) -> Any:
    import timm

    model: Any = timm.create_model(f"hf-hub:{repo}", pretrained=True, features_only=True).eval()
    return model(frames)[-1].mean((2, 3))


def timm_preprocessing(repo: str, folder: str, frames: Tensor) -> Any:
    import timm

    model = timm.create_model(f"hf-hub:{repo}", pretrained=True)
    return timm.data.resolve_model_data_config(model)


def transformers_model(repo: str, folder: str, frames: Tensor) -> Any:
    from transformers import AutoModel

    return AutoModel.from_pretrained(repo).eval()(frames).pooler_output


def transformers_folder(repo: str, folder: str, frames: Tensor) -> Any:
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder).eval()(frames).pooler_output


def transformers_classifier(repo: str, folder: str, frames: Tensor) -> Any:
    from transformers import AutoModelForImageClassification

    model: Any = AutoModelForImageClassification.from_pretrained(repo, num_labels=3).eval()
    assert model(frames).logits.shape == (len(frames), 3)
    inner = model.timm_model
    return inner.forward_head(inner.forward_features(frames), pre_logits=True)


def transformers_preprocessing(repo: str, folder: str, frames: Tensor) -> Any:
    import transformers

    processors: Any = transformers.AutoImageProcessor
    processor = processors.from_pretrained(repo)
    return {key: processor.data_config[key] for key in ("input_size", "mean", "std")}


def torchvision_state_dict(repo: str, folder: str, frames: Tensor) -> Any:
    import torchvision
    from safetensors.torch import load_file

    model = torchvision.models.resnet18(weights=None)
    model.fc = torch.nn.Identity()
    model.load_state_dict(load_file(f"{folder}/model.safetensors"))
    return model.eval()(frames)


def smp_hub(repo: str, folder: str, frames: Tensor) -> Any:
    import segmentation_models_pytorch as smp

    return smp.from_pretrained(repo).eval()(frames)


def smp_folder(repo: str, folder: str, frames: Tensor) -> Any:
    import segmentation_models_pytorch as smp

    return smp.from_pretrained(folder).eval()(frames)


def main(repo: str, folder: str, frames: str, output: str, *rows: str) -> None:
    for row in rows:
        try:
            with torch.no_grad():
                seen = globals()[row](repo, folder, torch.load(frames, weights_only=True))
            torch.save(seen, Path(output) / f"{row}.pt")
        except Exception:
            (Path(output) / f"{row}.txt").write_text(traceback.format_exc())


if __name__ == "__main__":
    main(*sys.argv[1:])
