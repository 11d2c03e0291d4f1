"""A pipeline whose trainings are the smallest of their kind: a regression, a GAN with a pool, a net with memory."""

from __future__ import annotations

from typing import ClassVar

from genkit.pipeline import Params, Pipeline


class Trainable(Pipeline):
    name = "test-training"
    Params = Params
    trainings: ClassVar[dict[str, str]] = {
        "test-regress": "genkit_test_tasks:Regress",
        "test-gan": "genkit_test_tasks:Gan",
        "test-memory": "genkit_test_tasks:Memory",
    }
