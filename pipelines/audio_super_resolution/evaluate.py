"""How far sounds are from the true ones: signal-to-noise ratio and log-spectral distance.

`audio` of `genkit evaluate`: two files, or two folders with files of the same names (suffixes may differ). What is
measured is defined in `genkit.metrics.audio`; nothing is resampled, shifted or scaled before it is measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from genkit.errors import InputError, MediaError
from genkit.evaluation import Evaluation, Place, Report
from genkit.fields import Hint
from genkit.media import files
from genkit.pipeline import Closed, Progress

if TYPE_CHECKING:
    from torch import Tensor

    from genkit.media.streaming import Reader

__all__ = ["AudioEvaluation"]

MEASURES = {"snr": "SNR (dB)", "lsd": "LSD", "lsd_lf": "LSD-LF", "lsd_hf": "LSD-HF"}
APART = 0.1  # seconds by which two lengths may differ, such as an encoder's padding; the common length is measured
NAMED = 10  # files left out that are named one by one; the others are counted


class Params(Closed):
    """What is measured, and against what."""

    reference: Place = Field(description="The true sound, or a folder of them.")
    estimate: Place = Field(description="The sound to measure, or a folder with files of the same names.")
    cutoff: Annotated[float | None, Hint(unit="Hz")] = Field(
        None, gt=0, le=384_000, description="Also LSD below this frequency (LSD-LF) and from it on (LSD-HF)."
    )


class AudioEvaluation(Evaluation):
    """How far ESTIMATE is from REFERENCE: two sounds of the same rate, or two folders of them.

    SNR is 20 log10(|t| / |p - t|) in dB: higher is better. LSD compares log10 of the power of an STFT (Hann 2048, hop
    512, floor 1e-8): the root of the mean square over frequencies, averaged over time: lower is better, and 0.602 is
    what half the loudness alone makes. With --cutoff also LSD below it, which is 0 where a band was left as it was, and
    above it.
    """

    Params: ClassVar[type[Closed]] = Params
    arguments = ("reference", "estimate")
    examples = (
        "genkit evaluate audio true.wav restored.wav --cutoff 4000",
        "genkit evaluate audio speech/true speech/restored --cutoff 4000 --json",
    )

    def run(self, params: Any, progress: Progress) -> Report:
        """Raises InputError, MediaError."""
        report = Report()
        pairs = _pairs(params.reference, params.estimate, report)
        rows: list[dict[str, Any]] = []
        bad: list[str] = []
        for number, (name, true, made) in enumerate(pairs, 1):
            try:
                for done in _measure(name, true, made, params.cutoff, rows):
                    progress(number, len(pairs), note=f"{name} {done:.0%}")
            except (InputError, OSError) as error:
                if len(pairs) == 1:
                    raise
                bad.append(str(error))
            progress(number, len(pairs), note=name)
        if not rows:
            raise MediaError(f"none of {len(pairs)} pairs can be measured; the first: {bad[0]}")
        _left_out(bad, f"pairs that cannot be measured, of {len(pairs)}", report)
        _summarise(rows, params.cutoff is not None, report)
        return report


def _pairs(reference: Path, estimate: Path, report: Report) -> list[tuple[str, Path, Path]]:
    """Name, reference and estimate of each pair. Raises InputError where there are none."""
    if reference.is_dir() != estimate.is_dir():
        raise InputError(f"{reference} and {estimate}: one is a folder and one is not; give two files or two folders")
    if not reference.is_dir():
        return [(estimate.name, reference, estimate)]
    true, made = _listed(reference), _listed(estimate)
    both = [name for name in true if name in made]
    if not both:
        raise InputError(f"no sound in {estimate} has the name of one in {reference}; name the files alike")
    _left_out([f"{true[name]} has no estimate" for name in true if name not in made], "references", report)
    _left_out([f"{made[name]} has no reference" for name in made if name not in true], "estimates", report)
    return [(name, true[name], made[name]) for name in both]


def _listed(folder: Path) -> dict[str, Path]:
    """The sounds under a folder by their name in it without suffix, sorted. Raises InputError for two of one name."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in files.SUFFIXES["audio"] or path.name.startswith(".") or not path.is_file():
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise InputError(f"{found[name]} and {path} have one name; leave one of them")
        found[name] = path
    if not found:
        raise InputError(f"{folder}: no files ending in {', '.join(files.SUFFIXES['audio'])} in there")
    return found


def _measure(name: str, true: Path, made: Path, cutoff: float | None, rows: list[dict[str, Any]]) -> Iterator[float]:
    """Adds a row; yields the share that is done. Raises MediaError, InputError."""
    from genkit.media.streaming import Reader
    from genkit.metrics.audio import Distance

    with Reader(true) as reference, Reader(made) as estimate:
        _check_alike(reference, estimate)
        rate = reference.sample_rate
        try:
            distance = Distance(rate, cutoff)
        except InputError as error:
            raise InputError(f"{reference.name}: {error}") from None
        lengths = [0, 0]
        for block, other in _together(reference, estimate):
            lengths[0] += block.shape[1]
            lengths[1] += other.shape[1]
            if abs(lengths[0] - lengths[1]) > APART * rate:
                raise MediaError(f"{estimate.name} and {reference.name} differ in length by over {APART} s; align them")
            common = min(block.shape[1], other.shape[1])
            if common:
                distance.add(block[:, :common], other[:, :common])
            yield min(1.0, lengths[0] / reference.frames)
    found = distance.result()
    values = {measure: getattr(found, measure) for measure in MEASURES}
    rows.append({"file": name, **values, "seconds": found.samples / rate, "longer_by": lengths[1] - lengths[0]})


def _together(reference: Reader, estimate: Reader) -> Iterator[tuple[Tensor, Tensor]]:
    import torch

    nothing = torch.zeros(reference.channels, 0)
    return zip_longest(reference.blocks(), estimate.blocks(), fillvalue=nothing)


def _check_alike(reference: Reader, estimate: Reader) -> None:
    for what, true, made, remedy in (
        ("Hz", reference.sample_rate, estimate.sample_rate, "resample one of them first"),
        ("channels", reference.channels, estimate.channels, "give both the same"),
    ):
        if true != made:
            raise MediaError(f"{estimate.name} has {made} {what}, {reference.name} {true}; {remedy}")


def _summarise(rows: list[dict[str, Any]], bands: bool, report: Report) -> None:
    report.facts = {"files": len(rows), "seconds": round(sum(row["seconds"] for row in rows), 3)}
    table = []
    for measure, title in MEASURES.items():
        if bands or measure in ("snr", "lsd"):
            values = [row[measure] for row in rows if not math.isnan(row[measure])]
            finite = [value for value in values if math.isfinite(value)] or values or [math.nan]
            mean = sum(finite) / len(finite)
            table.append({"measure": title, "mean": mean, "lowest": min(finite), "highest": max(finite)})
    report.tables["distances"] = table
    report.details["by_file"] = rows
    for count, text in (
        (sum(row["snr"] == math.inf for row in rows), "equal to the reference: the SNR is infinite, and in no mean"),
        (sum(math.isnan(row["snr"]) for row in rows), "the reference is silent: there is no SNR"),
        (sum(row["longer_by"] != 0 for row in rows), "longer or shorter: measured over what both have"),
    ):
        if count:
            report.notes.append(f"{count} of {len(rows)} files: {text}")


def _left_out(texts: list[str], what: str, report: Report) -> None:
    report.notes += [f"left out: {text}" for text in texts[:NAMED]]
    if len(texts) > NAMED:
        report.notes.append(f"left out {len(texts)} {what}")
