"""How many workers share an image."""

from dataclasses import dataclass

from fit_model import checks


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Workers form a grid: along one side images are divided, along the other an image's groups."""

    groups: int = 1
    """Workers that share every image; each reads and computes its own groups of it."""
    timeout_s: float = 600.0
    """How long a worker waits for the others before it gives up; more than a step may take."""

    def __post_init__(self) -> None:
        checks.positive(groups=self.groups)
        checks.finite(timeout_s=(self.timeout_s,))
        if self.timeout_s <= 0:
            raise ValueError(f"timeout_s is {self.timeout_s}: it must be above 0")
