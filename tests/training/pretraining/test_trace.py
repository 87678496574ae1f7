from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from uscl_zoo.training.pretraining.trace import (
    CHROME,
    GAPS,
    OTHER,
    TABLE,
    describe,
    family_of,
    trace,
)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        # ATen and oneDNN, as a CPU runs them
        ("aten::mkldnn_convolution", "convolution"),
        ("aten::convolution_backward", "convolution"),
        ("aten::native_batch_norm", "batch norm"),
        ("aten::_fused_adam_", "optimiser"),
        ("aten::grid_sampler_2d", "augmentation"),
        ("aten::addmm", "matrix products"),
        ("aten::copy_", "copies"),
        ("aten::threshold_backward", "pooling and activation"),
        # cuDNN, CUTLASS, ATen's own and Triton's, as a GPU runs them
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc", "convolution"),
        ("cudnn::bn_fw_tr_1C11_kernel_NHWC", "batch norm"),
        ("void at::native::batch_norm_collect_statistics_channels_last_kernel", "batch norm"),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel", "optimiser"),
        ("triton_poi_fused_index_lerp_mul_3", "augmentation"),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("something nobody has seen", OTHER),
    ],
)
def test_kernels_have_families(name: str, family: str) -> None:
    assert family_of(name) == family


def test_a_trace_adds_up_to_the_time_of_its_steps(tmp_path: Path) -> None:
    convolution = torch.nn.Conv2d(3, 16, 3)
    images = torch.randn(8, 3, 64, 64)
    done = []

    def step() -> None:
        convolution(images).relu().sum().backward()
        done.append(1)

    families = trace(step, torch.device("cpu"), tmp_path / "new" / "folder", steps=4)
    # one warms up
    assert len(done) == 5
    names = [one.name for one in families]
    assert names[-1] == GAPS
    assert {"convolution", "pooling and activation"} <= set(names)
    seconds = [one.seconds for one in families[:-1]]
    assert seconds == sorted(seconds, reverse=True)
    convolving = next(one for one in families if one.name == "convolution")
    assert "conv" in convolving.longest
    assert json.loads((tmp_path / "new" / "folder" / CHROME).read_text())["traceEvents"]
    with (tmp_path / "new" / "folder" / TABLE).open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["family"] for row in rows] == names
    assert float(rows[0]["ms a step"]) == pytest.approx(1e3 * families[0].seconds, abs=1e-3)
    assert describe(families).count("\n") == len(families) - 1
