"""Ten of lightly's methods as LightningModules, put together as its documentation does, but tiny.

None of them knows of advssl. A batch is (views, labels), as lightly's datasets give it.
"""
# ruff: noqa: ARG002 (the signatures are those of the documentation)

from __future__ import annotations

import copy

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from lightly.loss import (
    BarlowTwinsLoss,
    DINOLoss,
    NegativeCosineSimilarity,
    NTXentLoss,
    SwaVLoss,
    VICRegLLoss,
    VICRegLoss,
)
from lightly.models import utils
from lightly.models.modules import (
    BarlowTwinsProjectionHead,
    BYOLPredictionHead,
    BYOLProjectionHead,
    DINOProjectionHead,
    MaskedVisionTransformerTIMM,
    MoCoProjectionHead,
    NNCLRPredictionHead,
    NNCLRProjectionHead,
    NNMemoryBankModule,
    SimCLRProjectionHead,
    SimSiamPredictionHead,
    SimSiamProjectionHead,
    SwaVProjectionHead,
    SwaVPrototypes,
)
from lightly.models.modules.heads import VicRegLLocalProjectionHead, VICRegProjectionHead
from lightly.models.modules.memory_bank import MemoryBankModule
from lightly.models.utils import deactivate_requires_grad, update_momentum
from pytorch_lightning.loggers import Logger
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn
from torch.utils.data import DataLoader, Dataset

WIDTH, HIDDEN, OUT = 16, 16, 8


def backbone() -> nn.Module:
    def block(inside: int, outside: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inside, outside, 3, stride=2, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(outside), nn.ReLU()]

    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*block(3, 8), *block(8, WIDTH), nn.Dropout(0.1), *pool)


class Views(Dataset):
    """(views, label); colourful squares in place of photographs."""

    sizes = (16, 16)

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int):
        if not 0 <= index < len(self):
            raise IndexError(index)
        draw = torch.Generator().manual_seed(index)
        image = torch.rand(3, 4, 4, generator=draw).repeat_interleave(5, 1).repeat_interleave(5, 2)
        corners = torch.randint(0, 5, (len(self.sizes), 2), generator=draw).tolist()
        noise = 0.05 * torch.rand(len(self.sizes), generator=draw)
        views = [
            (0.1 + 0.8 * image[:, y : y + s, x : x + s] + n).contiguous()
            for s, (y, x), n in zip(self.sizes, corners, noise, strict=True)
        ]
        return views, index % 4


class OneView(Views):
    sizes = (16,)


class Crops(Views):
    """Two global crops and two local ones."""

    sizes = (16, 16, 8, 8)


class Method(pl.LightningModule):
    """What the ten share: a backbone, the optimizer and the data."""

    data: type[Dataset] = Views

    def __init__(self) -> None:
        super().__init__()
        self.backbone = backbone()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    def train_dataloader(self):
        return DataLoader(self.data(), batch_size=8)


class SimCLR(Method):
    def __init__(self) -> None:
        super().__init__()
        self.projection_head = SimCLRProjectionHead(WIDTH, HIDDEN, OUT)
        self.criterion = NTXentLoss()

    def forward(self, x):
        return self.projection_head(self.backbone(x))

    def training_step(self, batch, batch_idx):
        x0, x1 = batch[0]
        loss = self.criterion(self.forward(x0), self.forward(x1))
        self.log("train_loss", loss)
        return loss


class MoCo(Method):
    """Negatives from a queue, keys from a momentum encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.projection_head = MoCoProjectionHead(WIDTH, HIDDEN, OUT)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)
        self.criterion = NTXentLoss(memory_bank_size=(32, OUT))

    def forward(self, x):
        return self.projection_head(self.backbone(x))

    @torch.no_grad()
    def forward_momentum(self, x):
        return self.projection_head_momentum(self.backbone_momentum(x)).detach()

    def training_step(self, batch, batch_idx):
        update_momentum(self.backbone, self.backbone_momentum, m=0.9)
        update_momentum(self.projection_head, self.projection_head_momentum, m=0.9)
        x_query, x_key = batch[0]
        loss = self.criterion(self.forward(x_query), self.forward_momentum(x_key))
        self.log("train_loss", loss)
        return loss


class BYOL(Method):
    def __init__(self) -> None:
        super().__init__()
        self.projection_head = BYOLProjectionHead(WIDTH, HIDDEN, OUT)
        self.prediction_head = BYOLPredictionHead(OUT, HIDDEN, OUT)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, x):
        return self.prediction_head(self.projection_head(self.backbone(x)))

    @torch.no_grad()
    def forward_momentum(self, x):
        return self.projection_head_momentum(self.backbone_momentum(x)).detach()

    def training_step(self, batch, batch_idx):
        update_momentum(self.backbone, self.backbone_momentum, m=0.9)
        update_momentum(self.projection_head, self.projection_head_momentum, m=0.9)
        x0, x1 = batch[0]
        p0, z0 = self.forward(x0), self.forward_momentum(x0)
        p1, z1 = self.forward(x1), self.forward_momentum(x1)
        loss = 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))
        self.log("train_loss", loss)
        return loss


class SimSiam(Method):
    def __init__(self) -> None:
        super().__init__()
        self.projection_head = SimSiamProjectionHead(WIDTH, HIDDEN, OUT)
        self.prediction_head = SimSiamPredictionHead(OUT, 4, OUT)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, x):
        z = self.projection_head(self.backbone(x))
        return z.detach(), self.prediction_head(z)

    def training_step(self, batch, batch_idx):
        x0, x1 = batch[0]
        z0, p0 = self.forward(x0)
        z1, p1 = self.forward(x1)
        loss = 0.5 * (self.criterion(z0, p1) + self.criterion(z1, p0))
        self.log("train_loss", loss)
        return loss


class BarlowTwins(Method):
    def __init__(self) -> None:
        super().__init__()
        self.projection_head = BarlowTwinsProjectionHead(WIDTH, HIDDEN, OUT)
        self.criterion = BarlowTwinsLoss()

    def forward(self, x):
        return self.projection_head(self.backbone(x))

    def training_step(self, batch, batch_index):
        x0, x1 = batch[0]
        loss = self.criterion(self.forward(x0), self.forward(x1))
        self.log("train_loss", loss)
        return loss


class VICReg(Method):
    """Returns its loss in a dict, and takes the batch alone."""

    def __init__(self) -> None:
        super().__init__()
        self.projection_head = VICRegProjectionHead(WIDTH, HIDDEN, OUT, num_layers=2)
        self.criterion = VICRegLoss()

    def forward(self, x):
        return self.projection_head(self.backbone(x))

    def training_step(self, batch):
        x0, x1 = batch[0]
        loss = self.criterion(self.forward(x0), self.forward(x1))
        self.log_dict({"train_loss": loss})
        return {"loss": loss}


class SwAV(Method):
    """Normalises its prototypes in the step; its queues are a list and start to count late."""

    data = Crops

    def __init__(self) -> None:
        super().__init__()
        self.projection_head = SwaVProjectionHead(WIDTH, HIDDEN, OUT)
        self.prototypes = SwaVPrototypes(OUT, n_prototypes=6, n_steps_frozen_prototypes=1)
        self.criterion = SwaVLoss()
        self.queues = nn.ModuleList(MemoryBankModule(size=(16, OUT)) for _ in range(2))

    def forward(self, x):
        return F.normalize(self.projection_head(self.backbone(x)), dim=1, p=2)

    def training_step(self, batch, batch_idx):
        self.prototypes.normalize()
        features = [self.forward(x) for x in batch[0]]
        high, low = features[:2], features[2:]
        with torch.no_grad():
            queued = [
                bank(z.detach(), update=True)[1].T
                for z, bank in zip(high, self.queues, strict=True)
            ]
            queued = [self.prototypes(z, self.global_step) for z in queued]
        high = [self.prototypes(z, self.global_step) for z in high]
        low = [self.prototypes(z, self.global_step) for z in low]
        loss = self.criterion(high, low, queued if self.global_step > 0 else None)
        self.log("train_loss", loss)
        return loss


class DINO(Method):
    """Multi-crop, a teacher and its center."""

    data = Crops

    def __init__(self) -> None:
        super().__init__()
        self.head = DINOProjectionHead(WIDTH, HIDDEN, 8, 16, freeze_last_layer=1)
        self.teacher_backbone = copy.deepcopy(self.backbone)
        self.teacher_head = DINOProjectionHead(WIDTH, HIDDEN, 8, 16)
        deactivate_requires_grad(self.teacher_backbone)
        deactivate_requires_grad(self.teacher_head)
        self.criterion = DINOLoss(output_dim=16, warmup_teacher_temp_epochs=2)

    def forward(self, x):
        return self.head(self.backbone(x))

    @torch.no_grad()
    def forward_teacher(self, x):
        return self.teacher_head(self.teacher_backbone(x))

    def training_step(self, batch, batch_idx):
        update_momentum(self.backbone, self.teacher_backbone, m=0.9)
        update_momentum(self.head, self.teacher_head, m=0.9)
        views = batch[0]
        teacher_out = [self.forward_teacher(x) for x in views[:2]]
        student_out = [self.forward(x) for x in views]
        loss = self.criterion(teacher_out, student_out, epoch=self.current_epoch)
        self.log("train_loss", loss)
        return loss

    def on_after_backward(self):
        self.head.cancel_last_layer_gradients(current_epoch=self.current_epoch)


class NNCLR(Method):
    """Positives are nearest neighbours in a memory bank."""

    def __init__(self) -> None:
        super().__init__()
        self.projection_head = NNCLRProjectionHead(WIDTH, HIDDEN, OUT)
        self.prediction_head = NNCLRPredictionHead(OUT, HIDDEN, OUT)
        self.memory_bank = NNMemoryBankModule(size=(32, OUT))
        self.criterion = NTXentLoss()

    def forward(self, x):
        z = self.projection_head(self.backbone(x))
        return z.detach(), self.prediction_head(z)

    def training_step(self, batch, batch_idx):
        x0, x1 = batch[0]
        z0, p0 = self.forward(x0)
        z1, p1 = self.forward(x1)
        z0 = self.memory_bank(z0, update=False)
        z1 = self.memory_bank(z1, update=True)
        loss = 0.5 * (self.criterion(z0, p1) + self.criterion(z1, p0))
        self.log("train_loss", loss)
        return loss


class MAE(Method):
    """One view, and a mask drawn at random in the step."""

    data = OneView

    def __init__(self) -> None:
        super().__init__()
        vit = VisionTransformer(
            img_size=16, patch_size=4, embed_dim=WIDTH, depth=1, num_heads=2, num_classes=0
        )
        self.backbone = MaskedVisionTransformerTIMM(vit=vit)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.position = nn.Parameter(0.02 * torch.randn(1, 17, WIDTH))
        self.decoder = nn.Sequential(Block(WIDTH, 2), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 48))
        self.criterion = nn.MSELoss()

    def training_step(self, batch, batch_idx):
        (images,) = batch[0]
        size = len(images), self.backbone.sequence_length
        keep, mask = utils.random_token_mask(size, mask_ratio=0.5, device=images.device)
        encoded = self.backbone.encode(images=images, idx_keep=keep)
        tokens = utils.repeat_token(self.mask_token, size)
        tokens = utils.set_at_index(tokens, keep, encoded.type_as(tokens)) + self.position
        predicted = utils.get_at_index(self.decoder(tokens), mask)
        target = utils.get_at_index(utils.patchify(images, 4), mask - 1)  # but the class token
        loss = self.criterion(predicted, target)
        self.log("train_loss", loss)
        return loss


class Grids(Views):
    """(views and their grids, label): where each cell of a view lies in the photograph."""

    def __getitem__(self, index: int):
        views, label = super().__getitem__(index)
        cells = torch.stack(torch.meshgrid(*[4.0 * torch.arange(4)] * 2, indexing="ij"), dim=-1)
        return [*views, cells, cells + 1], label


class VICRegL(Method):
    """Compares cells that lie near each other, by grids that stand among the views."""

    data = Grids

    def __init__(self) -> None:
        super().__init__()
        self.backbone = self.backbone[:-2]
        self.projection_head = VICRegProjectionHead(WIDTH, HIDDEN, OUT, num_layers=2)
        self.local_projection_head = VicRegLLocalProjectionHead(WIDTH, HIDDEN, OUT)
        self.criterion = VICRegLLoss(num_matches=(4, 2))

    def forward(self, x):
        cells = self.backbone(x).permute(0, 2, 3, 1)
        return self.projection_head(cells.mean((1, 2))), self.local_projection_head(cells)

    def training_step(self, batch, batch_idx):
        x0, x1, *grids = batch[0]
        loss = self.criterion([self.forward(x0), self.forward(x1)], grids)
        self.log("train_loss", loss)
        return loss


METHODS = [SimCLR, MoCo, BYOL, SimSiam, BarlowTwins, VICReg, SwAV, DINO, NNCLR, MAE]


class Record(Logger):
    """Keeps what was logged."""

    name = version = "record"

    def __init__(self) -> None:
        super().__init__()
        self.metrics: list[dict[str, float]] = []
        self.experiment: list[str] = []

    def log_metrics(self, metrics, step=None):
        self.metrics.append({**metrics, "step": step})

    def log_hyperparams(self, params, *args, **kwargs):
        pass


def fit(module, callbacks=(), *, steps: int = 2, ckpt_path=None, **settings):
    """The trainer after a few silent steps on the CPU; seeds fix all of it."""
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        **{
            "accelerator": "cpu",
            "max_steps": steps,
            "logger": Record(),
            "log_every_n_steps": 1,
            "callbacks": list(callbacks),
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **settings,
        }
    )
    trainer.fit(module, ckpt_path=ckpt_path)
    return trainer


def made(method: type[Method]) -> Method:
    """From one seed."""
    pl.seed_everything(0, verbose=False)
    return method()


def state(module: nn.Module) -> dict:
    """Values, flags and modes, without the memory that an empty bank never initialises."""
    empty = {n for n, m in module.named_modules() if getattr(m, "size", None) == (0,)}
    tensors = [*module.named_parameters(), *module.named_buffers()]
    kept = {n: t.detach().clone() for n, t in tensors if n.rpartition(".")[0] not in empty}
    flags = {f"{n} learns": p.requires_grad for n, p in module.named_parameters()}
    return kept | flags | {f"{n} trains": m.training for n, m in module.named_modules()}


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        same = torch.equal(value, other[name]) if torch.is_tensor(value) else value == other[name]
        assert same, name
