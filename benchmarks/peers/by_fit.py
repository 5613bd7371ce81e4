"""An epoch by pgce.fit, by hand, skorch, Lightning: python benchmarks/peers/by_fit.py skorch --batch 32."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from common import arguments, tell

sys.path.insert(1, str(Path(__file__).parents[1]))
import fit


def by_lightning(inputs: torch.Tensor, labels: torch.Tensor, batch: int) -> None:
    import lightning
    from torch.utils.data import DataLoader, TensorDataset

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = fit.network()

        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            return F.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters())

    loader = DataLoader(TensorDataset(inputs, labels), batch, shuffle=True)
    lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(Module(), loader)  # fmt: skip


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for name in ("lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    given = arguments()
    programs = {"pgce": fit.by_pgce, "hand": fit.by_hand, "skorch": fit.by_skorch, "lightning": by_lightning}
    inputs, labels = fit.examples(given.examples)
    programs[given.what](inputs[: 2 * given.batch], labels[: 2 * given.batch], batch=given.batch)  # warms up
    begun = time.perf_counter()
    programs[given.what](inputs, labels, batch=given.batch)
    tell(seconds=time.perf_counter() - begun, steps=-(-given.examples // given.batch))
