"""`midi-transformer-xl`: a Transformer-XL on a folder of MIDI files.

Pieces are split before anything else (a folder each, or a share of one), then moved through all twelve keys; segments
come in order with the memory carried across them, and a share of the lines teaches to infill, accompany and vary.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from genkit import weights
from genkit.errors import InputError
from genkit.training.schedules import scheduled
from genkit.training.task import Folder, Folders, Setup, Task, TaskConfig
from pipelines.midi_generation.loading import Model
from pipelines.midi_generation.measuring.likelihood import likelihood
from pipelines.midi_generation.networks.transformer_xl import Config, TransformerXL
from pipelines.midi_generation.tokens.instruments import Instruments
from pipelines.midi_generation.tokens.vocabulary import Settings, Vocabulary
from pipelines.midi_generation.train.data import Augment, Lanes, LaneSampler, read_pieces
from pipelines.midi_generation.train.optimising import optimizers
from pipelines.midi_generation.train.samples import samples

__all__ = ["MidiTransformerXL"]


class TransformerXLConfig(TaskConfig):
    data: Folders = Field(description="Folders of MIDI files to learn from.")
    valid: Folder | None = Field(None, description="Folder of MIDI files for validation, none of them in `data`.")
    valid_share: float = Field(0.05, ge=0, lt=1, description="Share of the pieces held out where `valid` is not given.")
    valid_pieces: int = Field(40, ge=1, description="Pieces of them that a validation reads.")

    tokenization: Literal["REMI", "TSD", "MIDILike", "Structured"] = Field("REMI", description="MidiTok's class.")
    positions: int = Field(12, ge=2, le=48, multiple_of=2, description="Places in a beat, an even number.")
    velocities: int = Field(0, ge=0, le=127, description="Levels of loudness in the tokens; 0 leaves it out.")
    bpe: int = Field(0, ge=0, le=65536, description="Tokens with byte-pair merges, learned on `data`; 0: no merges.")

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
            raise ValueError(
                f"tokenization {self.tokenization} has no bars: set infill, accompany, pitches and rhythms to 0"
            )
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
        if c.bpe:
            self.vocabulary = self.vocabulary.with_merges(self._in_all_keys(), c.bpe)
        self.network = self._network()
        self.modules = {"network": self.network}
        self.optimizers = optimizers(self.network, c.optimizer, c.rate, c.weight_decay)
        for name, optimizer in self.optimizers.items():
            self.schedules[name] = scheduled(optimizer, c.schedule, setup.steps, c.warmup)
        self.forward = torch.compile(self.network) if c.compile else self.network
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
            held = {paths[i]: pieces[paths[i]] for i in order[: round(c.valid_share * len(paths))]}
        known = {tokens.tobytes() for tokens in held.values()}
        learned = {path: tokens for path, tokens in pieces.items() if tokens.tobytes() not in known}
        twice = len(pieces) - len(learned) - (0 if c.valid else len(held))
        if twice:
            setup.say(f"left out {twice} piece(s) that are held out under another name")
        if not learned:
            raise InputError("no piece is left to learn from; lower valid_share or give more files")
        self.pieces = list(learned.values())
        self.held = list(held.values())[: c.valid_pieces]
        total = sum(map(len, self.pieces))
        setup.say(f"{len(self.pieces)} pieces, {total:,} tokens to learn from; {len(held)} held out")

    def _in_all_keys(self) -> Iterator[np.ndarray]:
        """The training pieces, each moved as augmentation may move it, the next by a semitone more."""
        reach = max(1, 2 * self.config.transpose)
        for i, piece in enumerate(self.pieces):
            try:
                yield self.vocabulary.transpose(piece, i % reach - self.config.transpose)
            except ValueError:  # it spans nearly all pitches
                yield piece

    def _network(self) -> nn.Module:
        c = self.config
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
            places=self.vocabulary.places if c.bars else 0,
            bars=c.bars,
        )
        if c.architecture == "gpt2":
            from pipelines.midi_generation.networks.gpt2 import GPT2

            return GPT2(shape, context=c.segment)
        return TransformerXL(shape)

    def dataset(self) -> Lanes:
        c = self.config
        shares = {name: getattr(c, name) for name in ("infill", "accompany", "pitches", "rhythms")}
        augment = Augment(
            self.vocabulary, transpose=c.transpose, tempo=c.tempo_jitter, velocity=c.velocity_jitter, shares=shares
        )
        return Lanes(self.pieces, augment, lanes=self.setup.batch_size, segment=c.segment, seed=self.setup.seed)

    def sampler(self, dataset: Any) -> LaneSampler:
        return LaneSampler(self.setup.batch_size, self.setup.seed)

    def step(self, batch: dict[str, Tensor], trainer: Any) -> dict[str, Tensor]:
        memory, memory_piece = self._remembered(batch["piece"])
        logits, self.memory = self.forward(
            batch["tokens"],
            memory,
            place=batch["place"],
            bar=batch["bar"],
            piece=batch["piece"],
            memory_piece=memory_piece,
        )
        seen = torch.cat([memory_piece, batch["piece"]], 1)
        self.memory_piece = seen[:, seen.shape[1] - self.memory[0].shape[1] :]
        weight = batch["weight"].flatten().float()
        nll = F.cross_entropy(logits.float().flatten(0, 1), batch["target"].flatten(), reduction="none")
        loss = (nll * weight).sum() / self._counted(weight).clamp(min=1)
        trainer.backward(loss)
        trainer.update()
        return {"loss": loss}

    def _remembered(self, piece: Tensor) -> tuple[list[Tensor] | None, Tensor]:
        """The memory, and which piece each token of it is of, on the device: a checkpoint's come back on the CPU."""
        if self.memory is None or self.memory_piece is None:
            return None, piece[:, :0]
        return [m.to(piece.device) for m in self.memory], self.memory_piece.to(piece.device)

    def _counted(self, weight: Tensor) -> Tensor:
        """Targets that count, per process: gradients are averaged over processes, which makes it one mean of all."""
        count = weight.sum()
        if self.setup.processes > 1:
            torch.distributed.all_reduce(count)
        return count / self.setup.processes

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"memory": self.memory, "memory_piece": self.memory_piece}
        return state | {"vocabulary": self.vocabulary.record()} if self.config.bpe else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.config.bpe and state["vocabulary"] != self.vocabulary.record():
            raise InputError("the pieces have changed since the checkpoint, and with them the merges; use --restart")
        self.memory, self.memory_piece = state["memory"], state["memory_piece"]

    def lines(self) -> list[tuple[np.ndarray, ...]]:
        """The held-out pieces as lines of plain music."""
        augment = Augment(self.vocabulary, transpose=0, tempo=0, velocity=0, shares={})
        return [augment.line(p, "continue", np.random.default_rng(0)).arrays(self.vocabulary) for p in self.held]

    def validate(self) -> dict[str, float]:
        if not self.held:
            return {}
        c = self.config
        found = likelihood(
            self.network,
            self.lines(),
            segment=c.segment,
            memory=c.memory,
            batch=self.setup.batch_size,
            pitches=self.vocabulary.note_counts,
        )
        return {"nll": found.nll, "bits_per_note": found.bits_per_note}

    def sample(self) -> dict[str, Any]:
        c, instruments = self.config, Instruments.of(self.vocabulary, self.pieces)
        model = Model(self.network, self.vocabulary, instruments, c.architecture)
        return samples(model, self.held, self.setup.device, c.memory)

    def export(self, folder: Path) -> None:
        tensors = {key: value.half().contiguous() for key, value in self.network.state_dict().items()}
        about = {
            "architecture": f"genkit.midi-generation.{self.config.architecture}",
            "network": self.network.config.json(),  # type: ignore[union-attr,operator]
            "vocabulary": self.vocabulary.record(),
            "instruments": Instruments.of(self.vocabulary, self.pieces).record(),
        }
        if self.config.architecture == "gpt2":
            about["context"] = str(self.config.segment)
        weights.write(folder / f"{self.config.architecture}.safetensors", tensors, about)
