"""The parts of a model that stay as they are while its U-Net is trained, and the folder that all of them make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from genkit.errors import ModelError
from pipelines.stable_diffusion.folders import quiet

__all__ = ["beside", "frozen", "tidy"]


def frozen(vae: Path, text: Path) -> tuple[Any, Any, Any]:
    """The autoencoder, the text encoder (both float32) and its tokenizer. Raises ModelError."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTokenizer

    try:
        with quiet():
            encoder = AutoencoderKL.from_pretrained(vae, use_safetensors=True, local_files_only=True)
            reader = CLIPTextModel.from_pretrained(text / "text_encoder", use_safetensors=True, local_files_only=True)
            tokenizer = CLIPTokenizer.from_pretrained(text / "tokenizer", local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{vae} and {text} do not load: {str(error).splitlines()[0]}") from None
    return encoder.float(), reader.float(), tokenizer


def beside(folder: Path) -> dict[str, Any]:
    """The image encoder that was trained with the text encoder, for those who rank pictures by it; none is no error."""
    if not (folder / "image_encoder").is_dir():
        return {"feature_extractor": None}
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    with quiet():
        encoder = CLIPVisionModelWithProjection.from_pretrained(
            folder / "image_encoder", use_safetensors=True, local_files_only=True
        )
        processor = CLIPImageProcessor.from_pretrained(folder / "feature_extractor", local_files_only=True)
    return {"image_encoder": encoder.float().eval(), "feature_extractor": processor}


def tidy(config: Path) -> None:
    """Takes out of a configuration where its weights once lay, which diffusers writes in, and has transformers read 16
    bits as 32, as diffusers does: the parts of a folder that is loaded plainly must agree."""
    values = json.loads(config.read_text("utf-8"))
    values.pop("_name_or_path", None)
    values |= {"dtype": "float32"} if "dtype" in values else {}
    config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", "utf-8")
