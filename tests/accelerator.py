"""A device that is not the CPU, for machines without one: its tensors are CPU tensors in disguise.

An operation on a tensor of this device and one of the CPU is an error, as on any accelerator. It says nothing of the
arithmetic of a GPU. To register a device changes the whole process, so this is imported by a script of its own.
"""

import contextlib
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("acc")
DEVICE = torch.device("acc", 0)
_CPU = torch.device("cpu")


class _Disguised(Tensor):
    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "_Disguised":
        tensor = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        tensor.inner = inner
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.inner.tolist()

    def untyped_storage(self) -> Any:
        return self.inner.untyped_storage()

    @property
    def data(self) -> Tensor:
        return _Disguised(self.inner.detach())

    @data.setter
    def data(self, value: "_Disguised") -> None:
        self.inner = value.inner
        Tensor.data.__set__(self, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied = _Disguised(self.inner.clone())
        return nn.Parameter(copied, self.requires_grad) if isinstance(self, nn.Parameter) else copied


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func.overloadpacket.__name__
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    here = any(isinstance(t, _Disguised) for t in tensors)
    device = torch.device(kwargs["device"]) if kwargs.get("device") is not None else (DEVICE if here else _CPU)
    if "device" in kwargs:
        kwargs = {**kwargs, "device": _CPU}
    # Only a copy, an index and a single number may come from another device.
    if here and name not in {"_to_copy", "copy_", "index", "index_put_", "_index_put_impl_"}:
        for t in tensors:
            if not isinstance(t, _Disguised) and t.dim() > 0:
                raise RuntimeError(f"{func}: a tensor {tuple(t.shape)} is on the CPU and others are not")
    owners = {id(t.inner): t for t in tensors if isinstance(t, _Disguised)}
    result = func(*tree_map_only(_Disguised, _undisguised, args), **tree_map_only(_Disguised, _undisguised, kwargs))
    if name == "copy_":
        return args[0]

    def disguised(t: Tensor) -> Tensor:
        if id(t) in owners:  # it was changed in place
            return owners[id(t)]
        return _Disguised(t) if device.type == "acc" else t

    return tree_map_only(Tensor, disguised, result)


def _undisguised(t: _Disguised) -> Tensor:
    return t.inner


class Accelerator(TorchDispatchMode):
    """Within it, tensors can be made on, and moved to, the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


_tensor = torch.tensor


def _make_tensor(data: Any, *, device: Any = None, **options: Any) -> Tensor:
    return _tensor(data, **options) if device is None else _tensor(data, **options).to(device)


# What PyTorch does in C++ for devices that it knows.
torch.tensor = _make_tensor
torch.accelerator.synchronize = lambda _device=None: None
torch.is_autocast_enabled = lambda _device=None: False


def fabric() -> SimpleNamespace:
    """The part of Lightning Fabric that a training uses, which does not know the device."""
    return SimpleNamespace(
        device=DEVICE,
        global_rank=0,
        world_size=1,
        autocast=contextlib.nullcontext,
        backward=Tensor.backward,
        to_device=lambda module: module,  # a module here cannot be moved in place
        broadcast=lambda value: value,
        strategy=SimpleNamespace(
            setup_module=lambda module: module, precision=SimpleNamespace(convert_module=lambda module: module)
        ),
    )
