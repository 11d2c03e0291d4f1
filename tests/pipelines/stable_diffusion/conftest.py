"""A tiny model of each family, written once for the whole session; see diffusion_kit.py."""

from __future__ import annotations

from pathlib import Path

import diffusion_kit as kit
import pytest


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the models of this session lie in."""
    return tmp_path_factory.mktemp("diffusion")


@pytest.fixture(scope="session")
def sd(models: Path) -> Path:
    """Stable Diffusion 1's kind, 64 px."""
    return kit.save_sd(models / "sd")


@pytest.fixture(scope="session")
def seeing(models: Path) -> Path:
    """The same with an image encoder, as `emoji` has one: for `best_of`."""
    return kit.save_sd(models / "seeing", encodes_images=True)


@pytest.fixture(scope="session")
def inpainting(models: Path) -> Path:
    """A U-Net of 9 channels, made for inpainting."""
    return kit.save_inpainting(models / "inpainting")


@pytest.fixture(scope="session")
def sdxl(models: Path) -> Path:
    return kit.save_sdxl(models / "sdxl")


@pytest.fixture(scope="session")
def sd3(models: Path) -> Path:
    return kit.save_sd3(models / "sd3")


@pytest.fixture(scope="session")
def flux(models: Path) -> Path:
    """Like flux-schnell: no guidance."""
    return kit.save_flux(models / "flux")


@pytest.fixture(scope="session")
def flux_dev(models: Path) -> Path:
    """Like flux-dev: guidance is one of the transformer's inputs."""
    return kit.save_flux(models / "flux-dev", guidance_embeds=True)
