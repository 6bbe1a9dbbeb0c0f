"""What a token mixer is told about the sequences it will mix."""

from dataclasses import dataclass
from typing import Literal

FREE_OF_LENGTH = "use tssa, xca, performer, aft_simple or softmax"


def require_length(
    length: int, *, longest: int, operator: str, otherwise: str = FREE_OF_LENGTH
) -> None:
    """ValueError for a sequence longer than the one `operator` has weights for."""
    if length > longest:
        raise ValueError(
            f"{operator} has weights for {longest} tokens and is given {length}; build it for "
            f"longer sequences (a larger num_groups, in FIT), or {otherwise}"
        )


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a mixer stands: how long its sequences are, how they lie, and what may see what."""

    num_tokens: int | None = None
    """The longest sequence, the tokens before a grid included; None for any length."""
    grid: tuple[int, int] | None = None
    """Rows and columns, when the sequence is a grid read row by row."""
    prefix: int = 0
    """Tokens before the grid, such as a class token."""
    causal: Literal["none", "tokens", "chunks"] = "none"
    """"tokens" when no token may see a later one; "chunks" when it may see those of its own chunk,
    later ones included, and of the chunks before it."""
    chunk: int | None = None
    """Tokens of a chunk, the last one perhaps fewer; for causal "chunks" only."""

    def __post_init__(self) -> None:
        if self.num_tokens is not None and self.num_tokens < 1:
            raise ValueError(f"num_tokens is {self.num_tokens}; a sequence has at least one token")
        if self.grid is not None and (len(self.grid) != 2 or min(self.grid) < 1):
            raise ValueError(f"grid is {self.grid}; give rows and columns, both at least 1")
        if self.prefix < 0:
            raise ValueError(f"prefix is {self.prefix}; it counts tokens, so at least 0")
        if self.causal not in ("none", "tokens", "chunks"):
            raise ValueError(f"causal is {self.causal!r}; use 'none', 'tokens' or 'chunks'")
        if (self.causal == "chunks") != (self.chunk is not None):
            raise ValueError(
                f"causal is {self.causal!r} and chunk {self.chunk}; give the tokens of a chunk for "
                "'chunks', and for nothing else"
            )
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"chunk is {self.chunk}; a chunk has at least one token")
        if self.grid is not None and self.num_tokens is not None:
            held = self.prefix + self.grid[0] * self.grid[1]
            if held != self.num_tokens:
                raise ValueError(
                    f"num_tokens is {self.num_tokens}, but a grid {self.grid} after {self.prefix} "
                    f"other tokens holds {held}; give one of the two"
                )

    @property
    def sight(self) -> int | None:
        """Tokens of the chunks at whose ends sight ends: 1 for "tokens", None for no end."""
        return 1 if self.causal == "tokens" else self.chunk

    def length(self, *, operator: str, otherwise: str = FREE_OF_LENGTH) -> int:
        """The longest sequence; ValueError when `operator` needs it and nobody said."""
        if self.num_tokens is not None:
            return self.num_tokens
        if self.grid is None:
            raise ValueError(
                f"{operator} has weights for every position, but the length of the sequence is "
                f"not fixed here; fix it (num_groups, in FIT), or {otherwise}"
            )
        return self.prefix + self.grid[0] * self.grid[1]

    def raster(self, *, operator: str, otherwise: str = "use another operator") -> tuple[int, int]:
        """Rows and columns; ValueError when `operator` needs them and there are none."""
        if self.grid is None:
            raise ValueError(
                f"{operator} works on a grid of rows and columns, but these tokens lie in no grid; "
                f"use it where they do, or {otherwise}"
            )
        return self.grid

    def refuse_causal(self, *, operator: str) -> None:
        """ValueError when tokens must not see later ones; for an operator without such a form."""
        if self.causal != "none":
            raise ValueError(
                f"{operator} mixes all tokens and has no causal form; use softmax, tssa or "
                "aft_simple where tokens must not see later ones"
            )
