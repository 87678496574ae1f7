"""Entry points of torch.hub: `torch.hub.load(REPOSITORY, "resnet18_uscl", pretrained=True)`."""

from uscl_zoo.zoo.entry_points import ENTRY_POINTS

#: torch.hub says which of these is not installed.
dependencies = [
    "click",
    "huggingface_hub",
    "numpy",
    "PIL",
    "safetensors",
    "timm",
    "torch",
    "torchvision",
    "tqdm",
    "yaml",
]

globals().update(ENTRY_POINTS)
