"""Weights of a user's: from safetensors or a state dict, without unpickling code, onto a model that they must fit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tasks.base import TaskError

# Under which key training scripts keep the state dict, and what wrappers put before every name.
NESTED = ("state_dict", "model_state_dict", "model", "net", "weights", "ema_state_dict")
PREFIXES = ("module.", "model.", "_orig_mod.", "net.", "network.", "backbone.")
SHOWN = 5  # differences named in a message


def read(path: Path) -> dict[str, Any]:
    """Name -> tensor, from `.safetensors` or what `torch.load(weights_only=True)` reads; raises TaskError."""
    import torch

    if not path.is_file():
        raise TaskError(f"{path}: is not there; correct task.weights", "weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip, safetensors and torch each have their own
        reason = " ".join(str(error).split())[:300]
        if "weights_only" in reason or "Unsupported" in reason or "global" in reason.lower():
            reason = (
                "it holds Python objects beside weights, which could run code when they are read; write the state dict "
                "alone: torch.save(model.state_dict(), FILE), or safetensors.torch.save_model(model, FILE)"
            )
        raise TaskError(f"{path}: cannot be read as weights: {reason}", "weights") from None
    return _state(loaded, path)


def _state(loaded: Any, path: Path) -> dict[str, Any]:
    import torch

    for name in NESTED:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            return _state(loaded[name], path)
    tensors = {str(key): value for key, value in loaded.items()} if isinstance(loaded, Mapping) else {}
    tensors = {name: value for name, value in tensors.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise TaskError(f"{path}: holds no state dict; write torch.save(model.state_dict(), FILE)", "weights")
    return tensors


def stripped(state: Mapping[str, Any], wanted: Collection[str]) -> dict[str, Any]:
    """The state dict under the model's own names: wrappers' prefixes removed or, where the model has one, added."""
    best, most = dict(state), len(set(state) & set(wanted))
    seen = dict(state)
    for _ in PREFIXES:  # wrappers may be nested: module.model.fc.weight
        prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in seen)), None)
        if prefix is None:
            break
        seen = {name.removeprefix(prefix): value for name, value in seen.items()}
        if len(set(seen) & set(wanted)) > most:
            best, most = seen, len(set(seen) & set(wanted))
    for prefix in PREFIXES:
        added = {f"{prefix}{name}": value for name, value in state.items()}
        partly = {n.removeprefix(prefix): value for n, value in state.items() if n.startswith(prefix)}
        for tried in (added, partly):
            if len(set(tried) & set(wanted)) > most:
                best, most = tried, len(set(tried) & set(wanted))
    return best


def fit(model: Any, path: Path, heads: Collection[str] = ()) -> tuple[str, ...]:
    """Load the weights at `path` into a torch module; returns the names of heads that keep their fresh start.

    `heads`: modules that may differ in the number of classes, and then are left as they are. Raises TaskError that
    lists the first names and shapes that differ.
    """
    own = model.state_dict()
    state = given = stripped(read(path), own)
    state = {name: value for name, value in state.items() if name in own or not _counts_only(name)}
    replaced = _replaced(own, state, heads)
    state = {name: value for name, value in state.items() if not _within(name, replaced)}
    fresh = {name for name in own if _within(name, replaced)}
    missing = [name for name in own if name not in state and name not in fresh and not _counts_only(name)]
    surplus = [name for name in state if name not in own]
    shapes = [n for n in state if n in own and state[n].shape != own[n].shape]
    if missing or surplus or shapes:
        raise TaskError(f"{path.name}: {_differences(own, given, missing, surplus, shapes)}", "weights")
    model.load_state_dict(state, strict=False)
    return replaced


def _counts_only(name: str) -> bool:
    """Buffers that carry no weights and that versions of a library add or drop."""
    return name.endswith(("num_batches_tracked", "position_ids", "relative_position_index"))


def _within(name: str, modules: Collection[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _replaced(own: Mapping[str, Any], state: Mapping[str, Any], heads: Collection[str]) -> tuple[str, ...]:
    """Heads whose weights differ from the model's in the first axis alone."""
    found = []
    for head in heads:
        names = [name for name in own if _within(name, (head,)) and name in state]
        differ = [name for name in names if state[name].shape != own[name].shape]
        if differ and all(state[name].shape[1:] == own[name].shape[1:] for name in differ):
            found.append(head)
    return tuple(found)


def _differences(
    own: Mapping[str, Any], state: Mapping[str, Any], missing: list[str], surplus: list[str], shapes: list[str]
) -> str:
    said = [f"are not the weights of this model ({len(own)} tensors in the model, {len(state)} in the file)"]
    if shapes:
        each = (f"{n} is {list(state[n].shape)} and must be {list(own[n].shape)}" for n in shapes[:SHOWN])
        said.append(f"shapes differ: {', '.join(each)}{_more(shapes)}")
    if missing:
        said.append(f"missing: {', '.join(missing[:SHOWN])}{_more(missing)}")
    if surplus:
        said.append(f"not in the model: {', '.join(surplus[:SHOWN])}{_more(surplus)}")
    return "; ".join(said)


def _more(names: list[str]) -> str:
    return f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
