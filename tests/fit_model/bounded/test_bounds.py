"""What a bounded step needs at once, and what it leaves behind."""

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fit_model.bounded.config import BoundedConfig
from fit_model.bounded.disk import OnDisk
from fit_model.course import WHOLE
from fit_model.groups import collate
from fit_model.stored_pixels import StoredPixels
from tests.fit_model.bounded.cases import Case, bounded, encoder, generator
from tests.fit_model.examples import PATCH_PX, SIDE_PX, image

WIDEST = 48
"""Numbers a token and layer: the hidden width of a feed-forward."""


class Largest(TorchDispatchMode):
    """Remembers the elements of the largest tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else [made]:
            is_view = isinstance(each, torch.Tensor) and each._is_view()
            if isinstance(each, torch.Tensor) and not is_view:
                self.elements = max(self.elements, each.numel())
        return made


def large(kind: str) -> Case:
    """One image of 64 groups, more tokens than there are numbers in any weight."""
    trunk = {"latents_per_group": 1, "latent_width": 8, "latent_heads": 2}
    if kind == "encoder":
        case = encoder(pool="tokens", trunk=trunk)
    elif kind == "diffusion":
        case = generator(kind, trunk=trunk, normalize_input="deviation")
    else:
        case = generator(kind, trunk=trunk, num_levels=17)
    side = 4 if kind == "autoregressive" else 8  # its groups are patches
    return replace(case, batch=collate([image(side, side)]), targets=torch.tensor([1]))


@pytest.mark.parametrize(
    ("kind", "offload"), [("encoder", "host"), ("diffusion", "disk"), ("autoregressive", "disk")]
)
def test_no_tensor_holds_more_than_a_chunk_needs(kind, offload):
    case = large(kind)
    tokens, pixels = case.model.config.num_tokens, SIDE_PX * SIDE_PX * 2
    if kind == "autoregressive":
        tokens //= (SIDE_PX // PATCH_PX) ** 2
    latents = 64 * 4 * 8  # of all groups, as wide as the feed-forward of a global layer
    weights = max(each.numel() for each in case.model.parameters())
    chunk = 4 * max(tokens * WIDEST, pixels)
    most = max(chunk, latents, weights, 64 * 13)
    assert most < 64 * tokens * 12
    with Largest() as seen:
        case.step(bounded(4, offload=offload))
    assert seen.elements <= most
    with Largest() as seen:
        case.step(WHOLE)
    assert seen.elements >= 64 * tokens * WIDEST


@pytest.mark.parametrize("kind", ["encoder", "diffusion", "autoregressive"])
def test_stored_pixels_are_read_a_chunk_at_a_time_and_change_nothing(kind, monkeypatch):
    case = large(kind)
    stored = replace(
        case, batch=replace(case.batch, pixels=StoredPixels(list(case.batch.pixels.numpy())))
    )
    read: list[int] = []
    copy = StoredPixels.to

    def noticed(pixels: StoredPixels, *place: Any, **how: Any) -> torch.Tensor:
        read.append(len(pixels))
        return copy(pixels, *place, **how)

    monkeypatch.setattr(StoredPixels, "to", noticed)
    losses, gradients = stored.step(bounded(4))
    # patches that follow each other in a row lie in all groups of this row
    assert max(read) <= 4
    expected, wanted = case.step(bounded(4))
    assert losses.equal(expected)
    for name, gradient in wanted.items():
        assert (gradient is None) == (gradients[name] is None)
        assert gradient is None or gradient.equal(gradients[name])


def open_files() -> set[str]:
    """What this process holds open, by where it lies."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue
    return found


def held_in(folder: Path) -> list[str]:
    return [name for name in open_files() if name.startswith(str(folder))]


def test_the_file_has_no_name_and_is_gone_after_a_step(tmp_path, monkeypatch):
    seen = []
    whole = OnDisk.put
    monkeypatch.setattr(OnDisk, "put", lambda *args: (whole(*args), seen.append(held_in(tmp_path))))
    encoder().step(bounded(3, offload="disk", folder=str(tmp_path)))
    assert seen
    assert all(len(held) == 1 and held[0].endswith("(deleted)") for held in seen)
    assert not list(tmp_path.iterdir())
    assert not held_in(tmp_path)


def test_the_file_is_gone_when_nobody_goes_backwards(tmp_path):
    case = encoder()
    runner = bounded(3, offload="disk", folder=str(tmp_path))
    losses = case.model.losses(case.batch, case.targets, seeds=torch.arange(3), runner=runner)
    assert held_in(tmp_path)
    del losses
    assert not held_in(tmp_path)


@pytest.mark.parametrize("calls", [0, 4, 12])
def test_a_full_disk_is_told_in_one_line_and_leaves_no_file(tmp_path, monkeypatch, calls):
    """The forward pass of this case writes 8 times, the backward pass 8 times more."""
    left, whole = [calls], os.pwrite

    def full(*args):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(*args)

    monkeypatch.setattr(os, "pwrite", full)
    case = encoder(trunk={"layers": "(1)1(1)1(1)1"})
    case.batch = collate([image(2, 4)] * 3)
    case.targets = torch.tensor([0, 1, 2])
    with pytest.raises(
        OSError, match=r"cannot wait in .*: No space left on device; free some"
    ) as e:
        case.step(bounded(6, offload="disk", folder=str(tmp_path)))
    assert "\n" not in str(e.value)
    assert not held_in(tmp_path)


@pytest.mark.parametrize("written_before", [0, 1])
def test_what_was_not_written_is_not_read(monkeypatch, written_before):
    store, whole = OnDisk(torch.device("cpu"), folder=None), os.pwrite
    for _ in range(written_before):
        store.put(0, torch.zeros(1, 3, 3))
        assert not store.get(0).any()

    def full(*args):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "pwrite", full)
    store.put(0, torch.ones(1, 3, 3))
    with pytest.raises(OSError, match="Disk quota exceeded; free some"):
        store.get(0)
    monkeypatch.setattr(os, "pwrite", whole)
    store.close()


def test_a_file_that_takes_part_of_a_chunk_at_a_time_holds_all_of_it(monkeypatch):
    write, read = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: write(file, data[:100], at))
    monkeypatch.setattr(os, "preadv", lambda file, data, at: read(file, [data[0][:70]], at))
    store = OnDisk(torch.device("cpu"), folder=None)
    chunks = [torch.randn(3, 5, 7, dtype=torch.bfloat16), torch.randn(2, 5, 7).bfloat16()]
    for slot, chunk in enumerate(chunks):
        store.put(slot, chunk)
    store.put(0, 2 * chunks[0])
    assert torch.equal(store.get(1), chunks[1])
    assert torch.equal(store.get(0), 2 * chunks[0])
    store.close()


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokens cannot wait in .*nowhere: No such file"):
        encoder().step(bounded(offload="disk", folder=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"groups_a_chunk": 0}, "groups_a_chunk is 0"),
        ({"folder": "/tmp"}, "offload 'none' writes no file"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        BoundedConfig(**settings)
