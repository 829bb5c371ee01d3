"""The PyTorch module as the reference: called, and left exactly as it was.

Enters: a live module, in training or not. Leaves: its answers in inference mode, and no trace of having asked. A room
of its own because capture, export and parity all run the user's module and none of them may change it.
"""

from __future__ import annotations

import random
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from torch2engine.errors import ExportError, InputError
from torch2engine.spec import Parameter, Tree
from torch2engine.tree import Flat, flatten, unflatten

__all__ = ["Reference", "innermost_user_frame", "outputs_by_name", "undisturbed", "unwrap", "user_source"]

# Frames in these folders are machinery, not the line that a user can mend.
_FOREIGN = (
    Path(__file__).parent,
    *(Path(torch.__file__).parents[1] / name for name in ("torch", "onnxscript", "onnx_ir", "onnx", "sympy")),
)
_STDLIB = Path(sysconfig.get_paths()["stdlib"])


def unwrap(model: Any) -> nn.Module:
    """Reach the user's module below torch.compile and (Distributed)DataParallel.

    Raises:
        InputError: not an nn.Module, a ScriptModule, or a module that is deployed already.
    """
    subject = "model"
    if not isinstance(model, nn.Module):
        raise InputError(
            subject,
            got=f"a {type(model).__name__}",
            allowed="a torch.nn.Module",
            fix="wrap a function in a module whose forward calls it",
        )
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            break
        model = inner
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            subject,
            got="a torch.jit.ScriptModule",
            allowed="the Python module that it was made from",
            fix="pass the module as it was before torch.jit.script or torch.jit.trace",
        )
    if getattr(model, "_t2e_deployed", False):
        raise InputError(subject, got=f"a {type(model).__name__}", fix="it is deployed already; pass the PyTorch module")
    return model


class _Snapshot:
    """Everything of a module that a forward pass or an export may move."""

    def __init__(self, model: nn.Module) -> None:
        self.dictionaries: list[tuple[dict[str, Any], dict[str, Any]]] = []
        for module in model.modules():
            for names in (module.__dict__, module._parameters, module._buffers, module._modules):
                self.dictionaries.append((cast("dict[str, Any]", names), dict(names)))
        tensors = [*model.buffers(), *model.parameters()]
        self.buffers = [(buffer, buffer._version, buffer.detach().clone()) for buffer in model.buffers()]
        self.parameters = [(parameter, parameter._version) for parameter in model.parameters()]
        self.grads = [(tensor, tensor.grad) for tensor in tensors if tensor.is_leaf]

    def restore(self) -> None:
        for now, before in self.dictionaries:
            _put_back(now, before)
        with torch.no_grad():
            for buffer, version, values in self.buffers:
                if buffer._version != version:
                    buffer.copy_(values)
        for tensor, grad in self.grads:
            if tensor.grad is not grad:
                tensor.grad = grad

    def changed_parameters(self) -> bool:
        return any(parameter._version != version for parameter, version in self.parameters)


def _put_back(now: dict[str, Any], before: dict[str, Any]) -> None:
    # Key by key, never emptied in between: other threads may be calling the model.
    for name in [name for name in now if name not in before]:
        del now[name]
    for name, value in before.items():
        if name not in now or now[name] is not value:
            now[name] = value


@contextmanager
def _rng_kept() -> Iterator[None]:
    python, numpy_state, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def _plain_arithmetic(tf32: bool) -> Iterator[None]:
    """Grad and autocast off, no encoder fast path (it zeroes padded rows), TF32 as the engine will have it."""
    backends = torch.backends
    before = (backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32, backends.mha.get_fastpath_enabled())
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        if torch.cuda.is_available():
            stack.enter_context(torch.autocast("cuda", enabled=False))
            stack.enter_context(torch.cuda.device(torch.cuda.current_device()))
        backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = tf32
        backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32 = before[:2]
            backends.mha.set_fastpath_enabled(before[2])


@contextmanager
def undisturbed(model: nn.Module, *, tf32: bool = False) -> Iterator[None]:
    """Run the body with `model` in inference mode and put everything back afterwards, also after an error.

    Kept: the training flag of every submodule, parameters, buffers and gradients (values and identity), Python
    attributes of every submodule, hooks, RNG state of Python, NumPy, CPU and GPUs, autocast, grad mode, the current
    device and the TF32 switches.

    Raises:
        ExportError: the model's forward writes into its own parameters, which can't be undone.
    """
    snapshot = _Snapshot(model)
    with _rng_kept(), _plain_arithmetic(tf32):
        try:
            for module in model.modules():
                # Not .eval(): models override it, to merge adapters for instance, and that is no undoing.
                module.__dict__["training"] = False
            yield
        finally:
            snapshot.restore()
    if snapshot.changed_parameters():
        raise ExportError(
            "model",
            got="its forward writes into its own parameters",
            allowed="a forward that only reads them",
            fix="move such updates out of forward",
        )


class Reference:
    """The module as a function from a flat list of input tensors to named output tensors.

    Args:
        model: the unwrapped module.
        parameters: forward's captured parameters, whose trees take the inputs.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[Parameter]) -> None:
        self.model = model
        self._parameters = parameters

    def arguments(self, leaves: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        """forward's args and kwargs around these tensors."""
        iterator = iter(leaves)
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        by_name = False
        for parameter in self._parameters:
            if parameter.tree is None:
                by_name = True  # one was left out: what follows can only be passed by name
                continue
            value = unflatten(parameter.tree, [next(iterator) for _ in range(parameter.tree.leaves())])
            if parameter.kind == "var_positional":
                args.extend(value)
            elif parameter.kind == "var_keyword":
                kwargs.update(value)
            elif parameter.kind == "keyword" or by_name:
                kwargs[parameter.name] = value
            else:
                args.append(value)
        return args, kwargs

    def __call__(self, leaves: Sequence[torch.Tensor]) -> Flat:
        """Answer on clones of `leaves` (models write into their inputs); call it inside `undisturbed`.

        Raises:
            ExportError: the model itself fails; names the user's line.
            InputError: the result holds something that is no tensor, constant or container.
        """
        args, kwargs = self.arguments([leaf.detach().clone() for leaf in leaves])
        try:
            result = self.model(*args, **kwargs)
        except Exception as error:
            shapes = ", ".join(str(list(leaf.shape)) for leaf in leaves)
            raise ExportError(
                "model",
                got=f"PyTorch itself fails on inputs of shape {shapes}: {type(error).__name__}: {error}",
                fix="call the model with these shapes and mend that first",
                source=user_source(error),
            ) from error
        return flatten(result, "output", result=True)


def outputs_by_name(flat: Flat, tree: Tree, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """A result's tensors under the signature's output names.

    Raises:
        ExportError: the result's structure is not the sample's: an engine's structure is fixed.
    """
    if flat.tree != tree:
        raise ExportError(
            "model",
            got="its result has another structure, or other constants, at another size of its dynamic axes",
            allowed="one structure and equal Python numbers for every size",
            fix="return a tensor instead of a Python number that follows a shape",
        )
    return {name: leaf.detach() for name, leaf in zip(names, flat.leaves, strict=True)}


def user_source(origin: BaseException | FrameType | None) -> str:
    """ "FILE:LINE" of the innermost frame that belongs neither to torch nor to torch2engine, or ""."""
    if isinstance(origin, BaseException):
        frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(origin.__traceback__)]
    else:
        stack = traceback.extract_stack(origin) if origin is not None else []
        frames = [(frame.filename, frame.lineno) for frame in stack]
    return innermost_user_frame(frames)


def innermost_user_frame(frames: Sequence[tuple[str, int | None]]) -> str:
    """ "FILE:LINE" of the last frame in user code (or a model library), or ""."""
    for filename, line in reversed(frames):
        path = Path(filename)
        in_stdlib = path.is_relative_to(_STDLIB) and "site-packages" not in path.parts
        if not (in_stdlib or filename.startswith("<") or any(path.is_relative_to(folder) for folder in _FOREIGN)):
            return f"{filename}:{line}"
    return ""
