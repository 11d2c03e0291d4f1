"""KID, FID and SSIM: pinned to sums written out in numpy, and what must hold of them whatever the numbers are."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import models

from genkit import weights
from genkit.errors import InputError, ModelError
from genkit.metrics.features import LAST, Features
from genkit.metrics.image import fid, kid, ssim


def draws(count: int, seed: int = 0, shift: float = 0.0, channels: int = 6) -> Tensor:
    return torch.randn(count, channels, generator=torch.Generator().manual_seed(seed)) + shift


def slow_kid(x: np.ndarray, y: np.ndarray) -> float:
    """Equation 4 of Binkowski et al. 2018 for sets of any size, pair by pair."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (a @ b / len(a) + 1) ** 3

    n, m = len(x), len(y)
    within_x = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_x + within_y - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


def slow_kid_error(x: np.ndarray, y: np.ndarray) -> float:
    """The jackknife as it is defined: KID without each picture, one after the other."""
    variance = 0.0
    for left in (
        [slow_kid(np.delete(x, i, 0), y) for i in range(len(x))],
        [slow_kid(x, np.delete(y, i, 0)) for i in range(len(y))],
    ):
        variance += (len(left) - 1) * np.var(left)
    return float(np.sqrt(variance))


def test_kid_and_its_error_by_hand() -> None:
    x, y = draws(7, 1), draws(9, 2, 0.4)
    found = kid(x, y)
    x64, y64 = x.double().numpy(), y.double().numpy()
    assert found.value == pytest.approx(slow_kid(x64, y64), rel=1e-9)
    assert found.error == pytest.approx(slow_kid_error(x64, y64), rel=1e-9)


def test_kid_is_the_librarys_with_one_subset_of_everything() -> None:
    from torchmetrics.image.kid import poly_mmd

    x, y = draws(12, 1).double(), draws(12, 2, 0.3).double()
    assert kid(x, y).value == pytest.approx(float(poly_mmd(x, y)), rel=1e-9)


def test_kid_is_unbiased() -> None:
    """Over many small draws from one distribution its mean is zero: at times it is below."""
    values = [kid(draws(5, 2 * seed), draws(8, 2 * seed + 1)).value for seed in range(400)]
    mean, error = np.mean(values), np.std(values) / np.sqrt(len(values))
    assert abs(mean) < 4 * error
    assert min(values) < 0 < max(values)
    apart = [kid(draws(5, 2 * seed), draws(8, 2 * seed + 1, 1.0)).value for seed in range(50)]
    assert np.mean(apart) > 20 * error


def test_kid_does_not_care_who_comes_first() -> None:
    x, y = draws(10, 1), draws(6, 2, 0.5)
    assert kid(x, y).value == pytest.approx(kid(y, x).value)
    assert kid(x, y).error == pytest.approx(kid(y, x).error)


def test_the_error_is_as_large_as_the_scatter() -> None:
    found = [kid(draws(40, 2 * seed), draws(60, 2 * seed + 1, 0.3)) for seed in range(120)]
    scatter = np.std([one.value for one in found])
    assert np.mean([one.error for one in found]) == pytest.approx(scatter, rel=0.35)


def test_fid_by_hand() -> None:
    """|mean difference|^2 + trace(S + T - 2 (S T)^1/2), with the root taken through symmetric matrices."""
    x, y = draws(50, 1).double().numpy(), (2 * draws(70, 2, 0.5)).double().numpy()
    s, t = np.cov(x.T), np.cov(y.T)
    values, vectors = np.linalg.eigh(s)
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ t @ root)).sum()
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(s) + np.trace(t) - 2 * cross
    assert fid(torch.tensor(x), torch.tensor(y)) == pytest.approx(expected, rel=1e-8)


def test_fid_of_a_set_and_itself_and_of_a_set_moved() -> None:
    x = draws(60, 1)
    assert fid(x, x) == pytest.approx(0, abs=1e-6)
    assert fid(x, x + 3) == pytest.approx(6 * 9, rel=1e-5), "the same covariance: the distance of means alone"


def test_ssim() -> None:
    pictures = torch.rand(3, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    assert ssim(pictures, pictures).tolist() == pytest.approx([1, 1, 1], abs=1e-6)
    noisier = [ssim(pictures, (pictures + level * (0.5 - pictures)).clamp(0, 1)) for level in (0.2, 0.8)]
    assert (noisier[0] > noisier[1]).all()
    assert (noisier[0] < 1).all()
    apart = torch.cat([pictures[:1], 1 - pictures[1:]])
    assert ssim(pictures, apart)[0] == pytest.approx(1, abs=1e-6), "pair by pair"
    assert ssim(pictures, apart)[1] < 0.2


def test_ssim_of_flat_pictures_by_hand() -> None:
    """Without contrast only luminance is left: (2 x y + c) / (x^2 + y^2 + c), c = 0.01^2."""
    x, y = torch.full((1, 3, 16, 16), 0.2), torch.full((1, 3, 16, 16), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.04 + 0.36 + 1e-4)
    assert float(ssim(x, y)[0]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: kid(draws(1), draws(5)), "there are 1 and 5"),
        (lambda: fid(draws(5), draws(5, channels=7)), "cannot be compared"),
        (lambda: ssim(torch.rand(1, 3, 8, 20), torch.rand(1, 3, 8, 20)), "11 px"),
        (lambda: ssim(torch.rand(1, 3, 20, 20), torch.rand(1, 3, 20, 24)), "cannot be compared"),
    ],
)
def test_what_cannot_be_compared_is_one_line(call, words) -> None:
    with pytest.raises(InputError, match=words):
        call()


def test_a_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.image.kid", None)
    with pytest.raises(InputError, match=r"pip install genkit-media\[train\]"):
        kid(draws(4), draws(4))


# -------------------------------------------------------------------------------------------------------- features


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SqueezeNet at random, under torchvision's key names, classifier included."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("features") / "squeeze.safetensors"
    weights.write(path, models.squeezenet1_0(weights=None).state_dict(), {})
    return path


def test_features_are_pooled_by_depth_and_of_one_scale(network: Path) -> None:
    features = Features.load(network)
    assert features.name == "squeezenet1_0"
    pictures = torch.rand(3, 3, 40, 48, generator=torch.Generator().manual_seed(1))
    found = features.of(pictures)
    assert found.shape == (3, 2560)
    assert found[:, -LAST:].square().mean(1).tolist() == pytest.approx([1, 1, 1], abs=1e-4)
    assert not found.requires_grad
    assert torch.allclose(features.of(pictures[1:2]), found[1:2], atol=1e-5), "a picture's do not depend on its batch"

    own = models.squeezenet1_0(weights=None).eval()
    own.load_state_dict(weights.read(network))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        last = own.features((pictures - mean.view(3, 1, 1)) / std.view(3, 1, 1)).mean((2, 3))
    assert torch.allclose(found[:, -LAST:], last / last.square().mean(1, keepdim=True).sqrt(), atol=1e-4)


@pytest.mark.parametrize("prefix", ["", "backbone.features.", "0."])
def test_other_key_names(network: Path, tmp_path: Path, prefix: str) -> None:
    tensors = {
        prefix + key.removeprefix("features."): value
        for key, value in weights.read(network).items()
        if key.startswith("features.")
    }
    weights.write(tmp_path / "named.safetensors", tensors, {})
    if prefix == "0.":
        with pytest.raises(ModelError, match="no feature network"):
            Features.load(tmp_path / "named.safetensors")
        return
    pictures = torch.rand(2, 3, 32, 32)
    found, expected = (Features.load(path).of(pictures) for path in (tmp_path / "named.safetensors", network))
    assert torch.allclose(found, expected, atol=1e-5)


def test_squeezenet1_1_is_told_by_its_tensors(tmp_path: Path) -> None:
    weights.write(tmp_path / "one.safetensors", models.squeezenet1_1(weights=None).state_dict(), {})
    assert Features.load(tmp_path / "one.safetensors").name == "squeezenet1_1"


def test_a_file_of_another_kind_and_small_pictures_are_one_line(network: Path, tmp_path: Path) -> None:
    weights.write(tmp_path / "other.safetensors", {"model.10.conv_block.1.weight": torch.zeros(4, 4, 3, 3)}, {})
    with pytest.raises(ModelError, match=r"other.safetensors is no feature network \(it looks like a CycleGAN"):
        Features.load(tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="32 px and more"):
        Features.load(network)(torch.rand(1, 3, 31, 64))
