"""Tiny diffusion models in diffusers' folder format, made at random on the spot.

Each `save_...` writes one family with its own classes: networks of a few thousand weights, a VAE that shrinks by 8 as
the published ones do, and tokenizers that can spell any text (a vocabulary of bytes, and of some words). The model's
own size is 64 px, except where `sample_size` says otherwise. The same seed writes the same model.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

WORDS = ("a", "red", "green", "apple", "fox", "in", "the", "snow", "style", "noto", "blob", "cat")
HIDDEN = 32
"""Width of every text encoder, and of the image encoder's projection."""


@functools.cache
def _byte_letters() -> tuple[str, ...]:
    """The printable letter that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return tuple(chr(byte if byte in plain else next(spare)) for byte in range(256))


def clip_tokenizer(pad: str = "<|endoftext|>", words: tuple[str, ...] = WORDS) -> Any:
    """CLIP's tokenizer with a vocabulary of every byte and a few words: 77 places, as the published one."""
    from transformers import CLIPTokenizer

    letters = _byte_letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges = []
    for word in words:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts[:2] = ["".join(parts[:2])]
            tokens.append(parts[0])
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=list(dict.fromkeys(merges)), pad_token=pad, model_max_length=77)


def t5_tokenizer() -> Any:
    """T5's tokenizer with a vocabulary of letters; what is no letter of English is unknown to it."""
    from transformers import T5Tokenizer

    special = ["<pad>", "</s>", "<unk>"]
    letters = ["▁", *(chr(code) for code in range(33, 127))]
    vocabulary = [(token, 0.0) for token in special] + [(letter, -2.0) for letter in letters]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512)


def clip_text(tokenizer: Any, *, projection: bool = False, **changes: Any) -> Any:
    """A CLIP text encoder of two layers that fits a tokenizer."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": HIDDEN,
            "intermediate_size": 37,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "projection_dim": HIDDEN,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **changes,
        }
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def t5_text(tokenizer: Any, width: int = HIDDEN) -> Any:
    """A T5 encoder of one layer."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=37, num_layers=1, num_heads=4, dropout_rate=0.0
    )
    return T5EncoderModel(config).eval()


def image_encoder() -> tuple[Any, Any]:
    """A CLIP image encoder of 32 px whose projection lies in the text encoder's space, and its processor."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=HIDDEN,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        projection_dim=HIDDEN,
    )
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return CLIPVisionModelWithProjection(config).eval(), processor


def vae(latents: int = 4, **changes: Any) -> Any:
    """An autoencoder that shrinks by 8."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        **{
            "block_out_channels": (8, 8, 16, 16),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "latent_channels": latents,
            "norm_num_groups": 4,
            "layers_per_block": 1,
            "sample_size": 64,
            **changes,
        }
    ).eval()


def unet(**changes: Any) -> Any:
    """A U-Net of two levels with cross attention in both, on latents of 8 x 8."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        **{
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": (16, 32),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "layers_per_block": 1,
            "cross_attention_dim": HIDDEN,
            "attention_head_dim": 4,
            "norm_num_groups": 8,
            **changes,
        }
    ).eval()


def save_sd(folder: str | Path, *, seed: int = 0, encodes_images: bool = False, **changes: Any) -> Path:
    """Stable Diffusion 1's kind. encodes_images: with `image_encoder` and `feature_extractor`, as `emoji` has them;
    changes: of the U-Net's configuration, or whole components by their name (`scheduler=...`, `vae=...`)."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    torch.manual_seed(seed)
    tokenizer = changes.pop("tokenizer", None) or clip_tokenizer()
    eye, processor = image_encoder() if encodes_images else (None, None)
    parts: dict[str, Any] = {
        "tokenizer": tokenizer,
        "text_encoder": clip_text(tokenizer),
        "vae": vae(),
        "scheduler": PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
        "image_encoder": eye,
        "feature_extractor": processor,
    }
    parts |= {name: changes.pop(name) for name in tuple(parts) if name in changes}
    pipe = StableDiffusionPipeline(
        unet=changes.pop("unet", None) or unet(**changes),
        **parts,
        safety_checker=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    return Path(folder)


def save_inpainting(folder: str | Path, *, seed: int = 0, **changes: Any) -> Path:
    """The kind of sd-inpainting: the U-Net sees the mask and the masked picture beside the noise."""
    return save_sd(folder, seed=seed, in_channels=9, **changes)


def save_sdxl(folder: str | Path, *, seed: int = 0, **changes: Any) -> Path:
    """SDXL's kind: two text encoders, size and crop as conditions."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    torch.manual_seed(seed)
    first, second = clip_tokenizer(), clip_tokenizer(pad="!")
    network = unet(
        **{
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": (2, 4),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "transformer_layers_per_block": (1, 2),
            "projection_class_embeddings_input_dim": 6 * 8 + HIDDEN,
            "cross_attention_dim": 2 * HIDDEN,
            **changes,
        }
    )
    StableDiffusionXLPipeline(
        unet=network,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="leading",
        ),
        vae=vae(),
        text_encoder=clip_text(first),
        text_encoder_2=clip_text(second, projection=True),
        tokenizer=first,
        tokenizer_2=second,
        add_watermarker=False,
    ).save_pretrained(folder)
    return Path(folder)


def save_sd3(folder: str | Path, *, seed: int = 0, t5: bool = True) -> Path:
    """Stable Diffusion 3's kind: a transformer on patches of 2, three text encoders. t5: with the third."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(seed)
    words, letters = clip_tokenizer(), t5_tokenizer()
    network = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=2 * HIDDEN,
        caption_projection_dim=HIDDEN,
        pooled_projection_dim=2 * HIDDEN,
        pos_embed_max_size=24,
    )
    StableDiffusion3Pipeline(
        transformer=network.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip_text(words, projection=True),
        tokenizer=words,
        text_encoder_2=clip_text(words, projection=True),
        tokenizer_2=words,
        text_encoder_3=t5_text(letters, 2 * HIDDEN) if t5 else None,  # as wide as the two others side by side
        tokenizer_3=letters if t5 else None,
    ).save_pretrained(folder)
    return Path(folder)


def save_flux(folder: str | Path, *, seed: int = 0, guidance_embeds: bool = False) -> Path:
    """Flux's kind: a transformer on packed latents, CLIP for the whole prompt and T5 for its words."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(seed)
    words, letters = clip_tokenizer(), t5_tokenizer()
    network = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=HIDDEN,
        pooled_projection_dim=HIDDEN,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance_embeds,
    )
    FluxPipeline(
        transformer=network.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=1.0, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
        ),
        vae=vae(shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip_text(words),
        tokenizer=words,
        text_encoder_2=t5_text(letters),
        tokenizer_2=letters,
    ).save_pretrained(folder)
    return Path(folder)
