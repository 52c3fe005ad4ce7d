"""A card made of cardboard: the "meta" device with numbers behind it, to see what a GPU would see.

Nobody here has a GPU, so the CPU plays one. A tensor "on the card" says that its device is "meta",
and carries its numbers in a hidden CPU tensor that every operation is run on. Networks that train
there must give exactly what they give on a CPU, and on the way it is checked or noted

- that no operation takes tensors from both sides, where CUDA would refuse them (`TwoDevices`);
- when Python has to wait for the card: numbers read back, copies from memory that is not sent on
  its own, searches whose result has an unknown size (`Card.waits`);
- how many numbers the CPU works out itself in the training thread (`Card.work`).

What it cannot show: kernels that CUDA has not, other rounding, pinned memory, speed.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
_ROOT = Path(__file__).parents[1]
_HERE = Path(__file__).name
# Sizes of their results are in their values: CUDA has to be asked.
_SEARCHES = {"nonzero", "masked_select", "_unique2", "unique_consecutive", "_linalg_check_errors"}
_COPIES = {"_to_copy", "copy_"}


class TwoDevices(RuntimeError):
    """An operation with tensors on the card and on the CPU."""


class OnCard(torch.Tensor):
    """A tensor on the card."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnCard:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=DEVICE,
            requires_grad=inner.requires_grad,
        )

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return f"OnCard({tuple(self.shape)}, {self.dtype})"

    def __reduce_ex__(self, protocol: Any) -> Any:  # files hold plain tensors
        return self.inner.detach().__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        mode = _active[-1] if _active else None
        return _run(func, args, kwargs or {}, mode)


_active: list[Card] = []


class Card(TorchDispatchMode):
    """Inside, tensors may be sent to `DEVICE`; what they cost is written down."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()  # what and where in our code -> times
        self.work: Counter[str] = Counter()  # where in our code -> numbers the CPU worked out

    def forget(self) -> None:
        """Begin to count again."""
        self.waits.clear()
        self.work.clear()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {}, self)


class _Literals(TorchFunctionMode):
    """Lists become tensors that are then sent, as with CUDA; "meta" alone drops the numbers."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            key = args[1] if isinstance(args[1], tuple) else (args[1],)
            key = tuple(torch.tensor(k) if isinstance(k, (list, tuple)) else k for k in key)
            args = (args[0], key, *args[2:])
        if func is torch.tensor and torch.device(kwargs.get("device") or "cpu") == DEVICE:
            return torch.tensor(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        if func is torch.Tensor.new_tensor and isinstance(args[0], OnCard):
            return torch.tensor(*args[1:], dtype=args[0].dtype).to(DEVICE)
        return func(*args, **kwargs)


def _place() -> str:
    """The innermost line of our own code."""
    for frame in reversed(traceback.extract_stack()):
        if frame.filename.startswith(str(_ROOT / "faceswap")):
            return f"{Path(frame.filename).name}:{frame.lineno}"
    return "?"


def _waits(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], onto: bool) -> bool:
    flat = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
    card = [t for t in flat if isinstance(t, OnCard)]
    if name == "_to_copy":
        if isinstance(args[0], OnCard) != onto:
            return not (onto and kwargs.get("non_blocking"))
        return False
    if name == "copy_":
        return isinstance(args[0], OnCard) != isinstance(args[1], OnCard)
    if not card:
        return False
    if name == "index" or name.startswith("index_put"):
        return any(
            t.dtype == torch.bool or not isinstance(t, OnCard)
            for t in args[1]
            if isinstance(t, torch.Tensor)
        )
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    return name == "_local_scalar_dense" or name in _SEARCHES


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], mode: Card | None) -> Any:
    name = func.overloadpacket.__name__
    flat = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
    card = [t for t in flat if isinstance(t, OnCard)]
    other = [t for t in flat if not isinstance(t, OnCard)]
    assert not any(t.device == DEVICE for t in other), f"{func} at {_place()}: lost its numbers"
    wanted = kwargs.get("device")
    onto = bool(card) if wanted is None else torch.device(wanted) == DEVICE
    # CUDA takes single numbers from the CPU in arithmetic, and indices anywhere.
    if name in ("cat", "stack"):
        strange = other
    elif name in _COPIES or (name.startswith("index") and args[0] in card):
        strange = []
    else:
        strange = [t for t in other if t.dim()]
    if card and strange:
        raise TwoDevices(f"{func} at {_place()}: {[(type(t).__name__, t.shape) for t in flat]}")
    if mode is not None and _waits(name, args, kwargs, onto):
        mode.waits[f"{name} {_place()}"] += 1

    def inner(value: Any) -> Any:
        return value.inner if isinstance(value, OnCard) else value

    def wrapped(value: Any) -> Any:
        return OnCard(value) if isinstance(value, torch.Tensor) else value

    given = {k: inner(v) if k != "device" else v for k, v in tree_map(inner, kwargs).items()}
    if wanted is not None:
        given["device"] = torch.device("cpu")
    out = func(*tree_map(inner, args), **given)
    if name == "_to_copy" and out is inner(args[0]):
        out = out.clone()
    if mode is not None and not card and not onto:
        made = [t for t in tree_flatten(out)[0] if isinstance(t, torch.Tensor)]
        mode.work[_place()] += sum(t.numel() for t in made)
    if name == "_local_scalar_dense" or not onto:
        return out
    out = tree_map(wrapped, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if card else out


@contextmanager
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    """A card of cardboard is there inside; networks and tensors may move to `DEVICE`."""
    from torch.optim import optimizer

    real: Callable[[], list[str]] = optimizer._get_fused_kernels_supported_devices
    with monkeypatch.context() as patch:
        patch.setattr(
            optimizer, "_get_fused_kernels_supported_devices", lambda: [*real(), DEVICE.type]
        )
        # Autocast knows no "meta": what runs on the card of cardboard is full precision.
        plain = torch.autocast

        def autocast(kind: str, *args: Any, **given: Any) -> torch.autocast:
            if kind != DEVICE.type:
                return plain(kind, *args, **given)
            return plain("cpu", enabled=False)

        patch.setattr(torch, "autocast", autocast)
        before = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        mode = Card()
        _active.append(mode)
        try:
            with mode, _Literals():
                yield mode
        finally:
            _active.pop()
            torch.__future__.set_swap_module_params_on_conversion(before)
