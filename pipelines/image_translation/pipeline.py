"""One look into another, by CycleGAN, pix2pix, CUT or StarGAN."""

from __future__ import annotations

import genkit.pipeline


class Params(genkit.pipeline.Params):
    pass


class ImageTranslation(genkit.pipeline.Pipeline):
    name = "image-translation"
    Params = Params
    trainings = {
        "cyclegan": "pipelines.image_translation.train.cyclegan:CycleGAN",
        "pix2pix": "pipelines.image_translation.train.pix2pix:Pix2Pix",
    }
