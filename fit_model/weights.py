"""Save and load a model: a folder with model.safetensors and the config.json that built it.

Nothing in the folder can run code. A folder is whole or refused: config.json is written last, and
the weights carry a copy of it, so that two halves of different saves do not pass for a model.
"""

import json
import os
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fit_model.flops import num_parameters
from fit_model.model import Model, ModelConfig
from fit_model.models import build, config_from_dict, config_to_dict

VERSION = 2
WEIGHTS, CONFIG = "model.safetensors", "config.json"
MAX_CONFIG_BYTES = 1_000_000


def save(model: Model, folder: str | Path) -> Path:
    """Write the model; each file appears whole or not at all."""
    return save_tensors(model.state_dict(), model.config, folder)


def save_tensors(
    tensors: Mapping[str, torch.Tensor], config: ModelConfig, folder: str | Path
) -> Path:
    """Write a model whose tensors were gathered elsewhere, under the names of its state dict.

    Raises OSError where the disk takes no more.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    declared = {"version": VERSION, "model": config_to_dict(config)}
    text = json.dumps(declared, indent=2, sort_keys=True) + "\n"
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    drafts = {name: folder / f".{name}.{os.getpid()}" for name in (WEIGHTS, CONFIG)}
    try:
        drafts[CONFIG].write_text(text, encoding="utf-8")
        save_file(state, drafts[WEIGHTS], metadata={"format": "pt", "config": text})
        # safetensors lets nobody else read its files
        shutil.copymode(drafts[CONFIG], drafts[WEIGHTS])
        for name, draft in drafts.items():
            os.replace(draft, folder / name)
    except SafetensorError as error:
        raise OSError(f"{folder / WEIGHTS}: {error}") from error
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)
    return folder


def load(folder: str | Path, device: torch.device | str = "cpu") -> Model:
    """The saved model, in evaluation mode and in the precision it was saved in.

    Raises ValueError, naming the file and what to do, for a folder that is incomplete, damaged,
    or whose tensors are not those of its configuration.
    """
    folder = Path(folder)
    text = _read_config(folder / CONFIG)
    config = _parse_config(text, folder / CONFIG)
    stored = _read_weights(folder / WEIGHTS, device=str(device))
    model = _fill(config, stored.tensors, folder / WEIGHTS)
    if stored.config is not None and json.loads(stored.config) != json.loads(text):
        raise ValueError(
            f"{folder / WEIGHTS} and {folder / CONFIG} come from different saves: save again"
        )
    return model.eval()


def _read_config(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"{path} is missing: this folder holds no finished model")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ValueError(f"{path} is {path.stat().st_size} bytes long: that is no configuration")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text: {error}; pull or save the model again") from error


def _parse_config(text: str, path: Path) -> ModelConfig:
    try:
        declared = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}; pull or save the model again") from error
    version = declared.get("version") if isinstance(declared, dict) else None
    if version != VERSION:
        raise ValueError(
            f"{path} has version {version!r}, this program reads {VERSION}: use the program that "
            "saved it"
        )
    try:
        unknown = sorted(set(declared) - {"version", "model"})
        if unknown:
            raise ValueError(f"no setting '{unknown[0]}'; known: version, model")
        return config_from_dict(declared.get("model"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class _Stored:
    tensors: dict[str, torch.Tensor]
    config: str | None


def _read_weights(path: Path, *, device: str) -> _Stored:
    if not path.is_file():
        raise ValueError(f"{path} is missing: this folder holds no finished model")
    try:
        with safe_open(path, framework="pt", device=device) as file:
            tensors: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
            return _Stored(tensors=tensors, config=(file.metadata() or {}).get("config"))
    except (SafetensorError, struct.error, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}; pull or save the model again") from error


def _fill(config: ModelConfig, tensors: dict[str, torch.Tensor], path: Path) -> Model:
    found = sum(tensor.numel() for tensor in tensors.values())
    try:
        declared = num_parameters(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    # Weights are compared by number before the model is built: a configuration from elsewhere may
    # declare more than the machine can hold.
    if declared > 10 * found + 1_000_000:
        raise ValueError(
            f"{path} holds {found} parameters, its configuration declares {declared}: "
            "pull or save the model again"
        )
    with torch.device("meta"):
        model = build(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in sorted(wanted.keys() | tensors.keys()):
        problem = _problem(wanted.get(name), tensors.get(name))
        if problem:
            raise ValueError(f"{path}: tensor {name} {problem}: pull or save the model again")
    model.load_state_dict(tensors, assign=True)
    # Tensors that were assigned take no gradient until they are told to.
    return model.requires_grad_(True)


def _problem(wanted: tuple[int, ...] | None, tensor: torch.Tensor | None) -> str | None:
    if tensor is None:
        return "is missing"
    if wanted is None:
        return "is unknown to the configuration"
    if tuple(tensor.shape) != wanted:
        return f"has shape {tuple(tensor.shape)} instead of {wanted}"
    if not tensor.is_floating_point():
        return f"is {tensor.dtype}, no floating point"
    return None
