"""What one training step cost: loss, speed, waiting and memory, with units in the names."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from fit_model.flops import training_macs
from fit_model.model import ModelConfig
from jobs.batches import Batch


class Meter:
    """Measures one step on one worker, then sums over the workers.

    Figures of the whole step: `loss` (mean over the global batch), `speed/megapixels_per_s`,
    `speed/tokens_per_s`, `mfu` where the peak is known, `damaged_images` (others stood in for
    them). Figures of the slowest or largest worker: `time/step_s`, `time/data_wait_share`,
    `memory/peak_gb`.
    """

    def __init__(self, model: ModelConfig, *, device: torch.device, sharing: int) -> None:
        self.model = model
        self.device = device
        self.sharing = sharing
        """Workers that report each image, because they hold it together."""
        self.started_s = time.perf_counter()
        self.waited_s = 0.0
        self.loss = 0.0
        self.megapixels = 0.0
        self.groups_per_image: list[int] = []
        self.images: list[int] = []
        self.damaged: list[int] = []

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time in here is time spent waiting for data."""
        asked_s = time.perf_counter()
        yield
        self.waited_s += time.perf_counter() - asked_s

    def add(self, batch: Batch, loss: float) -> None:
        """Count one micro-batch whose weighted losses sum to `loss`."""
        self.loss += loss
        self.megapixels += batch.megapixels
        self.groups_per_image += batch.groups_per_image
        self.images += batch.images
        self.damaged += batch.damaged

    def metrics(self, engine: Any, *, lr: float, peak_tflops: float | None) -> dict[str, float]:
        """The step's figures over all workers; every worker calls this once at the step's end."""
        step_s = time.perf_counter() - self.started_s
        tokens = sum(self.groups_per_image) * self.model.num_tokens
        macs = training_macs(self.model, self.groups_per_image)
        once = [figure / self.sharing for figure in (self.loss, tokens, macs, len(self.damaged))]
        sums = self._reduce([*once, self.megapixels], dist.ReduceOp.SUM)
        worst = self._reduce([step_s, self.waited_s / step_s, self.peak_gb()], dist.ReduceOp.MAX)
        loss, all_tokens, all_macs, damaged, megapixels = sums
        slowest_s, waited_share, peak_gb = worst
        metrics = {
            "loss": loss,
            "lr": lr,
            "speed/megapixels_per_s": megapixels / slowest_s,
            "speed/tokens_per_s": all_tokens / slowest_s,
            "time/step_s": slowest_s,
            "time/data_wait_share": waited_share,
            "memory/peak_gb": peak_gb,
            "damaged_images": damaged,
        }
        norm = engine.get_global_grad_norm()
        if norm is not None:
            metrics["grad_norm"] = float(norm)
        if peak_tflops:
            tflops = 2 * all_macs / slowest_s / 1e12
            metrics["mfu"] = tflops / (peak_tflops * dist.get_world_size())
        return metrics

    def peak_gb(self) -> float:
        """Peak memory of this worker: of the GPU, else the resident memory of the process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

    def _reduce(self, figures: list[float], operation: Any) -> list[float]:
        tensor = torch.tensor(figures, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=operation)
        return tensor.tolist()
