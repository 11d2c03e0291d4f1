"""The tasks of genkit_test_training: real networks, a few hundred weights each."""

from __future__ import annotations

import random
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR
from torch.utils.data import Dataset

from genkit.training.data import Draw, ImageFolder, Lanes, Sampler
from genkit.training.task import Folders, Setup, Task, TaskConfig


class Waves(Dataset[Tensor]):
    """Pictures [3, 8, 8] of random waves, a new one for each item and epoch."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, draw: Draw) -> Tensor:
        frequency, phase = torch.rand(2, 3, 1, 1, generator=draw.generator())
        y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
        return (frequency * (x + 2 * y) + 6 * phase).sin() / 2 + 0.5


class RegressConfig(TaskConfig):
    data: Folders | None = Field(None, description="Pictures to learn from, instead of waves.")
    rate: float = Field(1e-2, gt=0, le=1e30, description="Learning rate.")
    channels: int = Field(4, ge=1, le=64, description="Width of the network.")
    noise: float = Field(0.0, ge=0, le=1, description="Noise on the input.")


class Regress(Task):
    """A small convolution net learns to invert colours."""

    Config: ClassVar[type[TaskConfig]] = RegressConfig
    best = ("error", "min")

    def __init__(self, config: RegressConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        width = config.channels
        net = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 3, 1))
        self.modules = {"net": net}
        self.optimizers = {"net": torch.optim.SGD(net.parameters(), config.rate, momentum=0.9)}

    def dataset(self) -> Any:
        return ImageFolder(self.config.data, size=8, setup=self.setup) if self.config.data else Waves(10)

    def step(self, batch: Tensor, trainer: Any) -> dict[str, Tensor]:
        noisy = batch + self.config.noise * torch.randn_like(batch) if self.config.noise else batch
        loss = F.mse_loss(self.modules["net"](noisy).float(), 1 - batch)
        trainer.backward(loss)
        trainer.update()
        return {"loss": loss}

    def _probe(self) -> Tensor:
        return torch.stack([Waves(4)[Draw(i, 999)] for i in range(4)]).to(self.setup.device)

    def validate(self) -> dict[str, float]:
        torch.rand(5), random.random()  # validation may draw what it likes
        probe = self._probe()
        return {"error": F.mse_loss(self.modules["net"](probe), 1 - probe).item()}

    def sample(self) -> dict[str, Any]:
        torch.rand(7)
        return {"inverted": self.modules["net"](self._probe())[0]}


class GanConfig(TaskConfig):
    pool: int = Field(3, ge=1, le=100, description="Pictures in the pool.")


class Gan(Task):
    """Two optimisers, generator first; batch normalisation, dropout, a pool of old fakes, schedules."""

    Config: ClassVar[type[TaskConfig]] = GanConfig
    averaged = ("g",)

    def __init__(self, config: GanConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        g = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.Conv2d(4, 3, 1))
        d = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 1))
        self.modules = {"g": g, "d": d}
        self.frozen = {"eye": nn.Conv2d(3, 2, 3)}
        self.optimizers = {n: torch.optim.Adam(m.parameters(), 2e-3, (0.5, 0.999)) for n, m in self.modules.items()}
        self.schedules = {
            "g": LambdaLR(self.optimizers["g"], lambda i: 1 - i / (setup.steps + 1)),
            "d": CosineAnnealingLR(self.optimizers["d"], setup.steps),
        }
        self.pool: list[Tensor] = []

    def dataset(self) -> Any:
        return Waves(7)

    def step(self, batch: Tensor, trainer: Any) -> dict[str, Tensor]:
        g, d, eye = self.modules["g"], self.modules["d"], self.frozen["eye"]
        fake = g(batch + 0.1 * torch.randn_like(batch))
        loss_g = (d(fake) - 1).square().mean() + F.l1_loss(eye(fake), eye(batch))
        trainer.backward(loss_g, "g")
        assert all(p.grad is None for p in d.parameters()) or trainer.recipe.accumulate > 1
        trainer.update("g")
        old = self._from_pool(fake.detach())
        loss_d = (d(batch) - 1).square().mean() + d(old).square().mean()
        trainer.backward(loss_d, "d")
        trainer.update("d")
        return {"g": loss_g, "d": loss_d}

    def _from_pool(self, fake: Tensor) -> Tensor:
        if len(self.pool) < self.config.pool:
            self.pool.append(fake)
            return fake
        if random.random() < 0.5:
            return fake
        place = random.randrange(len(self.pool))
        old, self.pool[place] = self.pool[place], fake
        return old

    def state_dict(self) -> dict[str, Any]:
        return {"pool": self.pool}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pool = [picture.to(self.setup.device) for picture in state["pool"]]


class Segments(Dataset[tuple[Tensor, int]]):
    """A sine cut into segments of 5, in order, each with its epoch."""

    def __len__(self) -> int:
        return 23

    def __getitem__(self, draw: Draw) -> tuple[Tensor, int]:
        return (0.3 * (5 * int(draw) + torch.arange(6.0))).sin(), draw.epoch


class Memory(Task):
    """A recurrent net whose memory is carried from one segment to the next."""

    def __init__(self, config: TaskConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        self.modules = {"rnn": nn.GRU(1, 4, batch_first=True), "head": nn.Linear(4, 1)}
        parameters = [p for module in self.modules.values() for p in module.parameters()]
        self.optimizers = {"all": torch.optim.Adam(parameters, 1e-2)}
        self.memory: Tensor | None = None
        self.epoch = -1

    def dataset(self) -> Any:
        return Segments()

    def sampler(self, dataset: Any) -> Sampler:
        return Lanes(len(dataset), self.setup.batch_size, self.setup.seed)

    def step(self, batch: Any, trainer: Any) -> dict[str, Tensor]:
        line, epoch = batch
        if int(epoch[0]) != self.epoch:
            self.memory, self.epoch = None, int(epoch[0])
        found, memory = self.modules["rnn"](line[:, :-1, None], self.memory)
        self.memory = memory.detach()
        loss = F.mse_loss(self.modules["head"](found)[..., 0], line[:, 1:])
        trainer.backward(loss)
        trainer.update()
        return {"loss": loss}

    def state_dict(self) -> dict[str, Any]:
        return {"memory": self.memory, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.memory, self.epoch = state["memory"], state["epoch"]
