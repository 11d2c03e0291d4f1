"""One stage's jobs: what they have in common, and each combination of its values as a job."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from typing import Any

from genkit.batch.job import Job, Made
from genkit.batch.planning import template
from genkit.batch.planning.digests import Digests
from genkit.batch.planning.drafts import Draft
from genkit.batch.planning.expand import combinations
from genkit.batch.planning.stages import Stage, format_of
from genkit.batch.recipe import Recipe
from genkit.media import rendering
from genkit.media.files import SUFFIXES
from genkit.pipeline import Params, Pipeline

__all__ = ["Digests", "StagePlanner"]

MAX_PARTS = 5
"""Variables in the name of an output whose recipe gives no template."""


class StagePlanner:
    """What the jobs of a stage have in common."""

    def __init__(
        self, recipe: Recipe, stage: Stage, digests: Digests, dtype: str | None, earlier: Mapping[str, list[Made]]
    ) -> None:
        self.recipe, self.stage, self.digests, self.dtype, self.earlier = recipe, stage, digests, dtype, earlier
        self.kind = stage.kind
        self.fields = self.kind.Params.model_fields
        self.files = self.kind.Params.file_fields()
        self.lists = _list_fields(self.kind.Params)
        self.sources = {axis.key: axis.source for axis in stage.axes if axis.source}
        self.file_axes = [axis.key for axis in stage.axes if axis.path[-2:-1] == ("files",)]
        self.data = {name for axis in stage.axes if not axis.literal for name in axis.names}
        self.output = stage.output or _default_output(recipe, stage, self.kind)
        self.seeds: dict[str, int] = {}

    @cached_property
    def rendered(self) -> dict[str, Any]:
        """What the renderings add to the identity: the formats, and what their sound is played with."""
        formats = sorted(map(format_of, self.stage.render))
        if not any(rendering.kind_of(f"piece.{one}", self.kind.produces) == "audio" for one in formats):
            return {"render": formats} if formats else {}
        from genkit.media import midi

        return {"render": formats, "soundfont": self.digests.file(midi.soundfont_file(self.stage.soundfont))}

    def jobs(self) -> Iterator[tuple[Job, dict[str, Any]]]:
        """Each job with the variables that later stages may use. Raises RecipeError."""
        for index, combination in enumerate(combinations(self.recipe, self.stage, self.earlier), 1):
            draft = Draft(self, index, combination)
            try:
                yield draft.job()
            except template.TemplateError as error:
                raise draft.error(str(error)) from None

    def nth_seed(self, key: str) -> int:
        # Rows that are equal to the letter are told apart by how often they came before.
        again = self.seeds[key] = self.seeds.get(key, 0) + 1
        # 32 bits, as Params.resolved draws.
        return int.from_bytes(hashlib.sha256(f"{key}{again}".encode()).digest()[:4])


@cache
def _list_fields(params: type[Params]) -> frozenset[str]:
    """File parameters that take a list and no single file."""
    properties = params.model_json_schema()["properties"]
    found = set()
    for name in params.file_fields():
        kinds = {option.get("type") for option in properties[name].get("anyOf", [properties[name]])}
        if "array" in kinds and "string" not in kinds:
            found.add(name)
    return frozenset(found)


def _default_output(recipe: Recipe, stage: Stage, kind: type[Pipeline]) -> str:
    """A template of what the jobs are made from: {animal}-{seed}.png. Values too long or too many to be a name leave it
    to {index}, and so do those that not every job has."""
    folder = f"{stage.name}/" if len(recipe.stages) > 1 else ""
    parts: list[str] = []
    index = bool(stage.include)
    for axis in stage.axes:
        if axis.source or axis.path[-2:-1] == ("files",):
            parts.append(f"{{{axis.key}.stem}}")
            continue
        for name in axis.names:
            short = all(0 < len(template.shown(row.get(name))) <= 40 for row in axis.values)
            everywhere = not stage.include or name in kind.Params.model_fields
            parts += [f"{{{name}}}"] if short and everywhere else []
            index = index or not short
    if index or len(parts) > MAX_PARTS:
        parts = ["{index:04}", *parts[:MAX_PARTS]]
    return folder + ("-".join(parts) or "{recipe}") + SUFFIXES[kind.produces][0]
