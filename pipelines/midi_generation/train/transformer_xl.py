"""`midi-transformer-xl`: a Transformer-XL on a folder of MIDI files.

Pieces are split before anything else (a folder each, or a share of one), then moved through all twelve keys; segments
come in order with the memory carried across them, and a share of the lines teaches to infill, accompany and vary.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from genkit import weights
from genkit.errors import InputError
from genkit.training.task import Folder, Folders, Setup, Task, TaskConfig
from pipelines.midi_generation.likelihood import likelihood
from pipelines.midi_generation.networks.transformer_xl import Config, TransformerXL
from pipelines.midi_generation.train.data import Augment, Lanes, LaneSampler, read_pieces
from pipelines.midi_generation.vocabulary import Settings, Vocabulary

__all__ = ["MidiTransformerXL"]


class TransformerXLConfig(TaskConfig):
    data: Folders = Field(description="Folders of MIDI files to learn from.")
    valid: Folder | None = Field(None, description="Folder of MIDI files for validation, none of them in `data`.")
    valid_share: float = Field(0.05, ge=0, lt=1, description="Share of the pieces held out where `valid` is not given.")
    valid_pieces: int = Field(40, ge=1, description="Pieces of them that a validation reads.")

    tokenization: Literal["REMI", "TSD", "MIDILike", "Structured"] = Field("REMI", description="MidiTok's class.")
    positions: int = Field(12, ge=1, le=48, description="Places in a beat.")
    velocities: int = Field(0, ge=0, le=127, description="Levels of loudness in the tokens; 0 leaves it out.")

    architecture: Literal["transformer-xl", "gpt2"] = Field(
        "transformer-xl", description="gpt2 trains a GPT-2 of the same shape beside it, for comparison."
    )
    layers: int = Field(8, ge=1, le=64, description="Layers.")
    width: int = Field(256, ge=8, le=4096, description="Width of the network.")
    heads: int = Field(4, ge=1, le=64, description="Heads of attention.")
    feedforward: int = Field(1024, ge=8, le=16384, description="Width between the two layers of a feed-forward.")
    segment: int = Field(256, ge=8, le=8192, description="Tokens of a segment.")
    memory: int = Field(256, ge=0, le=8192, description="Tokens of memory before it.")
    same_length: bool = Field(False, description="Every token sees just the `memory` tokens before it.")
    clamp_len: int = Field(0, ge=0, le=100_000, description="Distances beyond it count as it; 0 for none.")
    untie_biases: bool = Field(False, description="u and v for each layer.")
    pre_norm: bool = Field(True, description="Layer norm before each block; off is as published.")
    activation: Literal["relu", "gelu", "relu2"] = Field("relu", description="Of the feed-forward.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout.")
    bars: int = Field(16, ge=0, le=4096, description="Bar numbers told apart, modulo; 0: no beat encoding.")

    transpose: int = Field(6, ge=0, le=12, description="Semitones at most: 6 is all twelve keys.")
    tempo_jitter: int = Field(2, ge=0, le=32, description="Levels of tempo at most.")
    velocity_jitter: int = Field(1, ge=0, le=32, description="Levels of loudness at most.")
    infill: float = Field(0.1, ge=0, le=1, description="Share of lines that teach to infill.")
    accompany: float = Field(0.1, ge=0, le=1, description="Share that teach to accompany.")
    pitches: float = Field(0.05, ge=0, le=1, description="Share that teach to find new pitches.")
    rhythms: float = Field(0.05, ge=0, le=1, description="Share that teach to find new rhythms.")

    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: orthogonalised momentum for matrices (Jordan et al. 2024), adamw for the rest."
    )
    rate: float = Field(2.5e-4, gt=0, le=1, description="Highest learning rate.")
    schedule: Literal["cosine", "one-cycle", "linear", "trapezoid"] = Field(
        "cosine", description="How the rate falls; trapezoid: over the last two fifths."
    )
    compile: bool = Field(False, description="Compile the training step (torch.compile); needs a C++ compiler.")
    warmup: float = Field(0.02, ge=0, lt=1, description="Share of the steps over which the rate rises.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="Decoupled weight decay of matrices.")

    @model_validator(mode="after")
    def _together(self) -> TransformerXLConfig:
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width {self.width} must be even and a multiple of heads {self.heads}")
        shares = self.infill + self.accompany + self.pitches + self.rhythms
        if shares > 1:
            raise ValueError(f"infill, accompany, pitches and rhythms are {shares:g} together; at most 1")
        if self.tokenization != "REMI" and shares:
            raise ValueError(f"tokenization {self.tokenization} has no bars: set infill, accompany, ... to 0")
        return self


class MidiTransformerXL(Task):
    """Training of a Transformer-XL; see the module's docstring."""

    Config: ClassVar[type[TaskConfig]] = TransformerXLConfig
    best = ("nll", "min")

    def __init__(self, config: TransformerXLConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        c = self.config
        settings = Settings(tokenization=c.tokenization, positions=c.positions, velocities=c.velocities)
        self.vocabulary = Vocabulary.build(settings)
        self._split()
        self.network = self._network()
        self.modules = {"network": self.network}
        self._optimise()
        self.forward = torch.compile(self.network) if self.config.compile else self.network
        self.memory: list[Tensor] | None = None
        self.memory_piece: Tensor | None = None

    def _split(self) -> None:
        """Training and validation pieces, apart before anything is made of them."""
        c, setup = self.config, self.setup
        pieces = read_pieces(c.data, self.vocabulary, setup)
        if c.valid:
            held = read_pieces([c.valid], self.vocabulary, setup)
        else:
            paths = sorted(pieces)
            order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0)).tolist()
            names = [paths[i] for i in order[: round(c.valid_share * len(paths))]]
            held = {path: pieces.pop(path) for path in names}
        if not pieces:
            raise InputError("no piece is left to learn from; lower valid_share or give more files")
        self.pieces = list(pieces.values())
        self.held = list(held.values())[: c.valid_pieces]
        total = sum(map(len, self.pieces))
        setup.say(f"{len(self.pieces)} pieces, {total:,} tokens to learn from; {len(held)} held out")

    def _network(self) -> nn.Module:
        c = self.config
        beat = c.tokenization == "REMI" and c.bars > 0
        shape = Config(
            vocabulary=len(self.vocabulary),
            layers=c.layers,
            width=c.width,
            heads=c.heads,
            feedforward=c.feedforward,
            memory=c.memory,
            clamp_len=c.clamp_len,
            same_length=c.same_length,
            untie_biases=c.untie_biases,
            pre_norm=c.pre_norm,
            activation=c.activation,
            dropout=c.dropout,
            places=int(self.vocabulary.numbers[self.vocabulary.where("Position")].max(initial=-1)) + 1 if beat else 0,
            bars=c.bars if beat else 0,
        )
        if c.architecture == "gpt2":
            from pipelines.midi_generation.networks.gpt2 import GPT2

            return GPT2(shape, context=c.segment)
        return TransformerXL(shape)

    def _optimise(self) -> None:
        c = self.config
        inner = [p for name, p in self.network.named_parameters() if p.ndim == 2 and _is_matrix(name)]
        chosen = {id(p) for p in inner}
        outer = [p for p in self.network.parameters() if id(p) not in chosen]
        if c.optimizer == "muon":
            self.optimizers["matrices"] = torch.optim.Muon(
                inner, c.rate, weight_decay=c.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
            groups: list[dict[str, Any]] = [{"params": outer, "weight_decay": 0.0}]
        else:
            groups = [{"params": inner, "weight_decay": c.weight_decay}, {"params": outer, "weight_decay": 0.0}]
        self.optimizers["rest"] = torch.optim.AdamW(groups, c.rate, betas=(0.9, 0.99))
        for name, optimizer in self.optimizers.items():
            self.schedules[name] = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)

    def _rate(self, step: int) -> float:
        """The learning rate at a step, as a share of the highest."""
        c, steps = self.config, max(self.setup.steps, 1)
        rise = max(1, round((0.25 if c.schedule == "one-cycle" else c.warmup) * steps))
        if step < rise:
            return (step + 1) / rise
        done = (step - rise) / max(1, steps - rise)
        if c.schedule == "trapezoid":
            return min(1.0, max(0.0, (1 - step / steps) / 0.4))
        return max(0.0, 1 - done) if c.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def dataset(self) -> Lanes:
        c = self.config
        shares = {name: getattr(c, name) for name in ("infill", "accompany", "pitches", "rhythms")}
        augment = Augment(
            self.vocabulary, transpose=c.transpose, tempo=c.tempo_jitter, velocity=c.velocity_jitter, shares=shares
        )
        return Lanes(
            self.pieces, augment, lanes=self.setup.batch_size, segment=c.segment, seed=self.setup.seed
        )

    def sampler(self, dataset: Any) -> LaneSampler:
        return LaneSampler(self.setup.batch_size, self.setup.seed)

    def step(self, batch: dict[str, Tensor], trainer: Any) -> dict[str, Tensor]:
        piece, device = batch["piece"], batch["piece"].device
        if self.memory is None or self.memory_piece is None:
            self.memory, self.memory_piece = None, piece[:, :0]
        else:  # a checkpoint's come back on the CPU
            self.memory, self.memory_piece = [m.to(device) for m in self.memory], self.memory_piece.to(device)
        logits, self.memory = self.forward(
            batch["tokens"],
            self.memory,
            place=batch["place"],
            bar=batch["bar"],
            piece=piece,
            memory_piece=self.memory_piece,
        )
        seen = torch.cat([self.memory_piece, piece], 1)
        self.memory_piece = seen[:, seen.shape[1] - self.memory[0].shape[1] :]
        weight = batch["weight"].flatten().float()
        nll = F.cross_entropy(logits.float().flatten(0, 1), batch["target"].flatten(), reduction="none")
        loss = (nll * weight).sum() / weight.sum().clamp(min=1)
        trainer.backward(loss)
        trainer.update()
        return {"loss": loss}

    def state_dict(self) -> dict[str, Any]:
        return {"memory": self.memory, "memory_piece": self.memory_piece}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.memory, self.memory_piece = state["memory"], state["memory_piece"]

    def lines(self) -> list[tuple[np.ndarray, ...]]:
        """The held-out pieces as lines of plain music."""
        augment = Augment(self.vocabulary, transpose=0, tempo=0, velocity=0, shares={})
        return [augment.line(p, "continue", np.random.default_rng(0)).arrays(self.vocabulary) for p in self.held]

    def validate(self) -> dict[str, float]:
        if not self.held:
            return {}
        c = self.config
        notes = self.vocabulary.where("Pitch") | self.vocabulary.where("PitchDrum")
        found = likelihood(
            self.network, self.lines(), segment=c.segment, memory=c.memory, batch=self.setup.batch_size, pitches=notes
        )
        return {"nll": found.nll, "bits_per_note": found.bits_per_note}

    def export(self, folder: Path) -> None:
        tensors = {key: value.half().contiguous() for key, value in self.network.state_dict().items()}
        about = {
            "architecture": f"genkit.midi-generation.{self.config.architecture}",
            "network": self.network.config.json(),  # type: ignore[union-attr,operator]
            "vocabulary": self.vocabulary.record(),
        }
        weights.write(folder / f"{self.config.architecture}.safetensors", tensors, about)


def _is_matrix(name: str) -> bool:
    """Weights of hidden layers: what Muon is for; embeddings and the output are not."""
    return "embedding" not in name and "wte" not in name and "wpe" not in name and "bias" not in name
