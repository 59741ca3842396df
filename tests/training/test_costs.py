"""The peak that a run is a share of: the right card, the right precision, and where the figure is from."""

from __future__ import annotations

import pytest
import torch

from bouton.training import costs
from bouton.training.callbacks.throughput import Throughput
from bouton.training.costs import GEFORCE, GPU_PEAKS, peak_flops, sheet_peak

# Dense TFLOPS in bf16 with fp32 sums, as the vendor prints them.
PRINTED = {
    "NVIDIA GeForce RTX 3070": 40.6,
    "NVIDIA GeForce RTX 3080": 59.5,
    "NVIDIA GeForce RTX 3090": 71,
    "NVIDIA GeForce RTX 4080": 97.5,
    "NVIDIA GeForce RTX 4090": 165.2,
    "NVIDIA GeForce RTX 5070": 61.7,
    "NVIDIA GeForce RTX 5070 Ti": 87.9,
    "NVIDIA GeForce RTX 5080": 112.6,
    "NVIDIA GeForce RTX 5090": 209.5,
    "NVIDIA A10": 125,
    "NVIDIA A10G": 70,
    "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA A100 80GB PCIe": 312,
    "NVIDIA L4": 121,
    "NVIDIA L40": 181,
    "NVIDIA L40S": 362,
    "NVIDIA H100 80GB HBM3": 989,
    "NVIDIA H100 PCIe": 756,
    "NVIDIA H100 NVL": 836,
    "NVIDIA H200": 989,
    "NVIDIA H200 NVL": 836,
    "NVIDIA GH200 480GB": 990,
    "NVIDIA B200": 2250,
    "NVIDIA GB200": 2500,
}


@pytest.mark.parametrize(("name", "tera"), PRINTED.items())
def test_known_cards_have_the_printed_peak(name: str, tera: float) -> None:
    found = sheet_peak(name, "bf16-mixed")
    assert found is not None
    assert found[0] / 1e12 == pytest.approx(tera, rel=5e-3)
    assert "bf16 dense" in found[1]


@pytest.mark.parametrize("key", GEFORCE)
def test_every_desktop_card_is_found_by_its_own_name_alone(key: str) -> None:
    multiprocessors, clock = GEFORCE[key]
    expected = 2 * 2 * 128 * multiprocessors * clock * 1e6  # twice the fp32 peak of its 128 cores per multiprocessor
    found = sheet_peak(f"NVIDIA GeForce {key}", "16-mixed")
    assert found is not None and found[0] == expected and f"({key}, fp16 dense" in found[1]
    assert sheet_peak(f"NVIDIA GeForce {key} Laptop GPU", "16-mixed") is None
    assert sheet_peak(f"NVIDIA GeForce {key} D", "16-mixed") is None


def test_no_name_hides_another() -> None:
    for key, peak in GPU_PEAKS:
        found = sheet_peak(f"NVIDIA {key}", "16-true")
        assert found is not None and found == (peak, f"data sheet ({key}, fp16 dense)")
    for other in (
        "NVIDIA A1000",
        "NVIDIA L400",
        "NVIDIA RTX A4000",
        "NVIDIA T400",
        "NVIDIA XA100",
        "AMD Instinct MI300X",
    ):
        assert sheet_peak(other, "bf16-mixed") is None


@pytest.mark.parametrize(
    ("name", "tera"),
    [("Tesla T4", 65), ("Tesla V100-SXM2-16GB", 125), ("Tesla V100-PCIE-32GB", 112), ("Tesla V100S-PCIE-32GB", 130)],
)
def test_cards_without_bf16_have_a_peak_in_fp16_alone(name: str, tera: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(costs, "_measure", lambda device, dtype: {torch.float16: 2.0, torch.bfloat16: 3.0}[dtype])
    device = torch.device("cuda")
    assert peak_flops(device, "16-mixed")[0] == tera * 1e12
    assert peak_flops(device, "bf16-mixed") == (3.0, "measured matrix product (bfloat16)")


def test_what_is_not_known_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA GeForce RTX 4070 Laptop GPU")
    monkeypatch.setattr(costs, "_measure", lambda device, dtype: asked.append((device.type, dtype)) or 7.0)
    for kind, precision, dtype in (
        ("cuda", "bf16-mixed", torch.bfloat16),
        ("cuda", "16-mixed", torch.float16),
        ("cuda", "32-true", torch.float32),
        ("cpu", "bf16-mixed", torch.bfloat16),
        ("cpu", "32-true", torch.float32),
    ):
        assert peak_flops(torch.device(kind), precision)[0] == 7.0
        assert asked[-1] == (kind, dtype)
    assert peak_flops(torch.device("meta"), "32-true") == (None, "no peak known for meta")


def test_utilisation_is_the_models_flops_over_the_peak_of_all_devices() -> None:
    # nanoGPT's rule for a model of 83 M parameters on an RTX 3070: 0.35 of the card, not 0.045 as against an A100
    meter = Throughput(tokens_per_step=32768, flops_per_token=5.16e8, log_every=1, mfu=False, precision="bf16-mixed")
    assert meter.utilisation(32768 / 1.2) is None  # no peak was asked for
    meter.peak, _ = sheet_peak("NVIDIA GeForce RTX 3070", "bf16-mixed") or (None, "")
    assert meter.utilisation(32768 / 1.2) == pytest.approx(0.347, abs=0.001)
    assert meter.utilisation(None) is None
