"""CLIP's tokenizer, which every single-file model needs and none carries.

Its vocabulary (49,408 byte pairs) is looked for beside the model's file, in the hub's cache, and in the package
open-clip-torch, the extra `single-file`. It is the same for all of them.
"""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from genkit.errors import ModelError

__all__ = ["clip_tokenizer"]

SIZE = 49_408
MERGES = SIZE - 2 * 256 - 2
"""Each merge is a token; so is each byte, inside a word and at its end; and there are a start and an end."""
PACKAGES = ("open_clip", "clip")
PACKED = "bpe_simple_vocab_16e6.txt.gz"
ENDS = ("<|startoftext|>", "<|endoftext|>")


def clip_tokenizer(file: Path, pad: str = ENDS[1]) -> Any:
    """The tokenizer for a model file; pad: the token that fills the rest of its 77 places. Raises ModelError."""
    from transformers import CLIPTokenizer

    folder = next(_folders(file), None)
    if folder is not None:
        try:
            return CLIPTokenizer.from_pretrained(folder, local_files_only=True, pad_token=pad, model_max_length=77)
        except Exception as error:  # a damaged vocabulary fails anywhere in two libraries
            raise ModelError(f"{folder} holds no tokenizer of CLIP's ({type(error).__name__}); get it again") from error
    packed = next(_packed(), None)
    if packed is None:
        raise ModelError(
            f"{file} comes without its tokenizer: pip install 'genkit-media[single-file]' brings it, or put the folder "
            "tokenizer/ of any Stable Diffusion model beside the file"
        )
    vocabulary, merges = unpack(packed)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=77)


def _folders(file: Path) -> Iterator[Path]:
    """Folders that hold the vocabulary: beside the file, then in the hub's cache."""
    from huggingface_hub import constants

    beside = file.parent / "tokenizer"
    if beside.is_dir():
        yield beside
    snapshots = Path(constants.HF_HUB_CACHE).glob("models--*/snapshots/*")
    for folder in sorted(place for snapshot in snapshots for place in (snapshot / "tokenizer", snapshot)):
        if (folder / "merges.txt").is_file() and _entries(folder / "vocab.json") == SIZE:
            yield folder


def _entries(path: Path) -> int:
    """How many tokens a vocab.json has, 0 for none."""
    import json

    try:
        return len(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        return 0


def _packed() -> Iterator[Path]:
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)  # finds it without running it
        for place in (spec and spec.submodule_search_locations) or ():
            path = Path(place) / PACKED
            if path.is_file():
                yield path


def unpack(path: Path) -> tuple[dict[str, int], Any]:
    """Vocabulary and merges out of CLIP's own list of merges: a heading, then a pair on each line, the first ones of
    which count."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        pairs = [tuple(line.split()) for line in lines.read().splitlines()[1 : 1 + MERGES]]
    merges = [(first, second) for first, second in pairs]
    letters = _letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(first + second for first, second in merges), *ENDS]
    return {token: number for number, token in enumerate(tokens)}, merges


def _letters() -> list[str]:
    """The letter that stands for each byte, those that can be printed first (GPT-2's order)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + number) for number in range(len(rest))]
