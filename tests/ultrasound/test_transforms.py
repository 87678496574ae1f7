from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torchvision import transforms as tv

import uscl_zoo
from uscl_zoo.errors import DataError, UnknownModelError
from uscl_zoo.ultrasound.transforms import FrameTransform, create_transform
from uscl_zoo.zoo.catalogue import packaged_cards

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (50, 70, 3), np.uint8)


def smooth(channels: int | None) -> NDArray[np.uint8]:
    """An image with gradients and edges, as resizing meets them."""
    y, x = np.mgrid[:331, :417]
    base = 127 + 90 * np.sin(x / 23) * np.cos(y / 17) + 30 * (x > 200)
    if channels is not None:
        base = np.stack([base + 8 * c for c in range(channels)], axis=-1)
    return np.asarray(base.clip(0, 255), np.uint8)


class TestFrameTransform:
    @pytest.mark.parametrize(
        "image",
        [
            smooth(None),
            smooth(3),
            smooth(4),
            smooth(None).astype(np.uint16) * 257,
        ],
        ids=["grey", "RGB", "RGBA", "16 bits"],
    )
    def test_equals_torchvision(self, image: NDArray[Any]) -> None:
        transform = create_transform("resnet18_uscl")
        normalise = tv.Normalize(transform.mean, transform.std)
        theirs = tv.Compose([tv.Resize((224, 224)), tv.ToTensor(), normalise])
        eight = (image / 257).astype(np.uint8) if image.dtype == np.uint16 else image
        expected = theirs(Image.fromarray(eight).convert("RGB"))
        ours = transform(image)
        assert ours.shape == (3, 224, 224)
        assert ours.dtype == torch.float32
        assert (ours - expected).abs().max() < 1.01 / 255 / min(transform.std)

    def test_antialiases_and_squashes(self) -> None:
        stripes = np.zeros((224, 896), np.uint8)
        stripes[:, ::2] = 255
        result = FrameTransform((224, 224), (0.0,), (1.0,))(stripes)
        # a resize without antialiasing would pick stripes; columns at the edge see half a kernel
        assert (result[:, :, 4:-4] - 0.5).abs().max() < 0.05

    def test_one_channel_is_luminance(self) -> None:
        pure = np.zeros((8, 8, 3), np.uint8)
        pure[:, :, 1] = 255
        result = FrameTransform((8, 8), (0.0,), (1.0,))(pure)
        assert result.shape == (1, 8, 8)
        assert result.mean() == pytest.approx(0.587, abs=0.003)

    def test_more_channels_go_round(self) -> None:
        transform = FrameTransform((50, 70), (0.0,) * 5, (1.0,) * 5)
        result = transform(COLOUR)
        expected = torch.from_numpy(COLOUR[:, :, [0, 1, 2, 0, 1]]).permute(2, 0, 1) / 255
        assert torch.equal(result, expected)

    def test_normalises_each_channel_by_its_own(self) -> None:
        transform = FrameTransform((50, 70), (0.1, 0.2, 0.3), (0.5, 0.25, 2.0))
        raw = FrameTransform((50, 70), (0.0,) * 3, (1.0,) * 3)(COLOUR)
        back = transform(COLOUR) * torch.tensor([0.5, 0.25, 2.0])[:, None, None]
        assert torch.allclose(back + torch.tensor([0.1, 0.2, 0.3])[:, None, None], raw, atol=1e-6)

    def test_batch(self) -> None:
        frames = RNG.integers(0, 256, (3, 20, 30, 3), np.uint8)
        transform = FrameTransform((32, 48), (0.5,) * 3, (0.25,) * 3)
        batch = transform.batch(frames)
        assert batch.shape == (3, 3, 32, 48)
        assert all(
            torch.equal(one, transform(frame)) for one, frame in zip(batch, frames, strict=True)
        )

    @pytest.mark.parametrize(
        "wrong",
        [{"interpolation": "cubist"}, {"mean": (0.5,)}, {"mean": (), "std": ()}],
    )
    def test_refuses(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(DataError):
            FrameTransform(**{"size": (8, 8), "mean": (0.5,) * 3, "std": (0.25,) * 3} | wrong)


class TestCreateTransform:
    @pytest.mark.parametrize("name", sorted(packaged_cards()))
    def test_card_name_and_network_agree(self, name: str) -> None:
        card = packaged_cards()[name]
        expected = FrameTransform(
            card.input.size[1:], card.input.mean, card.input.std, card.input.interpolation
        )
        network = uscl_zoo.create_model(name)
        assert create_transform(card) == expected
        assert create_transform(name) == expected
        assert create_transform(network) == expected
        assert create_transform(nn.DataParallel(nn.Sequential(network))) == expected

    def test_a_network_of_timms_own(self) -> None:
        transform = create_transform(timm.create_model("resnet18"))
        assert transform.mean == (0.485, 0.456, 0.406)
        assert transform == create_transform("resnet18")

    @pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
    def test_as_many_channels_as_the_network_takes(self, channels: int) -> None:
        network = uscl_zoo.create_model("resnet18_uscl", in_chans=channels).eval()
        transform = create_transform(network)
        assert transform.channels == channels
        assert network(transform(COLOUR)[None]).shape == (1, 512)

    def test_one_channel_takes_the_mean_normalisation(self) -> None:
        transform = create_transform(timm.create_model("resnet18", in_chans=1))
        assert transform.mean == pytest.approx((0.449,))
        assert transform.std == pytest.approx((0.226,))

    def test_grey_images_embed_the_same_by_one_channel(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        three = uscl_zoo.create_model("resnet18_uscl").eval()
        torch.save(three.state_dict(), tmp_path / "weights.pt")
        # timm itself adds up the filters of the three channels
        one = timm.create_model(
            "resnet18_uscl",
            pretrained=True,
            in_chans=1,
            pretrained_cfg_overlay={"file": str(tmp_path / "weights.pt")},
        ).eval()
        image = smooth(None)
        with torch.inference_mode():
            expected = three(create_transform(three)(image)[None])
            found = one(create_transform(one)(image)[None])
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)

    def test_unknown(self) -> None:
        with pytest.raises(UnknownModelError, match="did you mean resnet18_uscl"):
            create_transform("resnet18_usl")
        for name in ("resnet18_uscl.nosuch", "resnet18.nosuch"):
            with pytest.raises(UnknownModelError, match="nosuch"):
                create_transform(name)
        with pytest.raises(DataError, match="Linear does not say what input"):
            create_transform(nn.Linear(3, 3))
