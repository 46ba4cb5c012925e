"""lightly-train, made robust by one argument of its own (marked `# +`).

    pip install lightly-train && python examples/lightly_train_pretrain.py

lightly-train 0.18 takes no callback of one's own: ``callbacks=`` configures those that it has, and
what stands in ``trainer_args=`` is printed as JSON, which a callback is not. ``strategy=`` takes an
instance of Lightning's, which meets the module before Lightning asks that for callbacks of its own;
lightly-train's stay beside these. Data: scikit-learn's digits.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import lightly_train
from PIL import Image
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import SingleDeviceStrategy
from sklearn.datasets import load_digits
from torchvision.models import resnet18

from advssl import AdversarialViewGenerator, Linf
from advssl.integrations.lightning import AdversarialViews
from advssl.pixels import IMAGENET


class WithCallbacks(SingleDeviceStrategy):  # + on several devices of DDPStrategy
    """Has the module bring callbacks, by Lightning's own hook."""

    def __init__(self, callbacks: list[Callback], device: str = "cpu") -> None:  # +
        super().__init__(device)
        self.callbacks = callbacks

    def connect(self, model) -> None:  # +
        model.configure_callbacks = lambda: self.callbacks  # +
        super().connect(model)


class Ends(Callback):
    """Keeps what the attack climbed."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []

    def on_train_batch_end(self, trainer, *_):
        logged = trainer.callback_metrics
        self.seen.append((float(logged["attack_start"]), float(logged["attack_end"])))


def write_digits(folder: Path, count: int) -> None:
    folder.mkdir()
    for i, image in enumerate(load_digits().images[:count]):
        picture = Image.fromarray((image * 15.9).astype("uint8")).convert("RGB")
        picture.resize((64, 64)).save(folder / f"{i}.png")


def train(
    method: str = "simclr", epochs: int = 2, batch_size: int = 32
) -> list[tuple[float, float]]:
    adversary = AdversarialViewGenerator(Linf(8 / 255), steps=5, pixels=IMAGENET)  # +
    ends = Ends()
    with tempfile.TemporaryDirectory() as folder:
        write_digits(Path(folder) / "images", 4 * batch_size)
        lightly_train.pretrain(
            out=Path(folder) / "out",
            data=Path(folder) / "images",
            model=resnet18(),
            method=method,
            epochs=epochs,
            batch_size=batch_size,
            num_workers=0,
            accelerator="cpu",
            loggers={"tensorboard": None},
            transform_args={"image_size": (32, 32)},
            strategy=WithCallbacks([AdversarialViews(adversary), ends]),  # +
        )
        assert (Path(folder) / "out" / "exported_models" / "exported_last.pt").exists()
    return ends.seen


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="simclr")
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()
    for start, end in train(arguments.method, arguments.epochs):
        print(f"the attack took the loss from {start:.3f} to {end:.3f}")
