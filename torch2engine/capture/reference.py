"""The PyTorch module as the reference: a function from flat inputs to named outputs, and the call settled around it.

Enters: the user's module and arguments. Leaves: its answers, and errors at the user's own line. A room of its own
because capture, export and the parity cases all run the module, and they never import each other.
"""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from torch2engine.core.errors import ExportError, InputError
from torch2engine.core.package import PACKAGE_ROOT
from torch2engine.core.pytree import Flat, flatten, unflatten
from torch2engine.core.spec import Parameter, Preprocess, Profile, Signature, Tree

__all__ = [
    "Captured",
    "Reference",
    "flatten_result",
    "innermost_user_frame",
    "outputs_by_name",
    "resized",
    "unwrap",
    "user_source",
]

# Frames in these folders are machinery, not the line that a user can mend.
_FOREIGN = (
    PACKAGE_ROOT,
    *(Path(torch.__file__).parents[1] / name for name in ("torch", "onnxscript", "onnx_ir", "onnx", "sympy")),
)
_STDLIB = Path(sysconfig.get_paths()["stdlib"])


_WRAPPERS: tuple[type, ...] = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrap(model: Any) -> nn.Module:
    """Reach the user's module below torch.compile and (Distributed)DataParallel.

    Raises:
        InputError: not an nn.Module, deployed already, or one that can't be traced: it is or holds a ScriptModule, or
            its parameters are lazy or were made in inference mode.
    """
    inner = model
    while hasattr(inner, "_orig_mod") or type(inner) in _WRAPPERS:
        inner = inner._orig_mod if hasattr(inner, "_orig_mod") else inner.module
    got = f"a {type(inner).__name__}"
    if not isinstance(inner, nn.Module):
        fix = "wrap a function in a module whose forward calls it"
        raise InputError("model", got=got, allowed="a torch.nn.Module", fix=fix)
    for name, module in cast("Iterable[tuple[str, nn.Module]]", inner.named_modules()):
        if isinstance(module, torch.jit.ScriptModule):
            fix = "pass the module as it was before torch.jit.script or torch.jit.trace"
            raise InputError(
                "model",
                got=f"its submodule '{name}' is a {type(module).__name__}" if name else got,
                allowed="the Python module that it was made from",
                fix=fix,
            )
    for name, parameter in [*inner.named_parameters(), *inner.named_buffers()]:
        if isinstance(parameter, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            got = f"its lazy parameter '{name}' has no shape yet"
            raise InputError("model", got=got, fix="call the model once first")
        if parameter.is_inference() and parameter.requires_grad:
            got = f"its parameter '{name}' was made in inference mode and requires grad, which torch.export can't take"
            raise InputError("model", got=got, fix="make or load the model outside torch.inference_mode()")
    if getattr(inner, "_t2e_deployed", False):
        raise InputError("model", got=got, fix="it is deployed already; pass the PyTorch module")
    return inner


class Reference:
    """The module as a function from a flat list of input tensors to named output tensors.

    Args:
        model: the unwrapped module.
        parameters: forward's captured parameters, whose trees take the inputs.
        preprocess: what becomes of each input before the model gets it; empty, or None for one: nothing.
    """

    def __init__(
        self, model: nn.Module, parameters: Sequence[Parameter], preprocess: Sequence[Preprocess | None] = ()
    ) -> None:
        self.model = model
        self._parameters = parameters
        self._preprocess = preprocess if any(preprocess) else ()

    def arguments(self, leaves: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        """forward's args and kwargs around these tensors, or what `preprocess` makes of them."""
        if self._preprocess:
            dtype = _float_dtype(self.model)
            pairs = zip(leaves, self._preprocess, strict=True)
            leaves = [leaf if step is None else step(leaf).to(dtype) for leaf, step in pairs]
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

    def _made(self, leaves: Sequence[torch.Tensor]) -> str:
        """What preprocessing makes of the shapes, for a message."""
        steps = zip(leaves, self._preprocess, strict=False)
        shapes = [list(step(leaf).shape) for leaf, step in steps if step is not None and leaf.ndim == 4]
        return f", of which preprocess= made {', '.join(map(str, shapes))}" if shapes else ""

    def call(self, leaves: Sequence[torch.Tensor]) -> Any:
        """The model's own result."""
        args, kwargs = self.arguments(leaves)
        return self.model(*args, **kwargs)

    def __call__(self, leaves: Sequence[torch.Tensor]) -> Flat:
        """Answer on clones of `leaves`, since models write into their inputs; call it inside `undisturbed`.

        Raises:
            ExportError: the model itself fails (names the user's line), or its result holds something unknown.
        """
        return self.run([leaf.detach().clone() for leaf in leaves])

    def run(self, leaves: Sequence[torch.Tensor]) -> Flat:
        """As `__call__`, on `leaves` themselves."""
        try:
            result = self.call(leaves)
        except Exception as error:
            shapes = ", ".join(str(list(leaf.shape)) for leaf in leaves) + self._made(leaves)
            raise ExportError(
                "model",
                got=f"PyTorch itself fails on inputs of shape {shapes}: {type(error).__name__}: {error}",
                fix="call the model with these shapes and mend that first",
                source=user_source(error),
            ) from error
        return flatten_result(result)


def _float_dtype(model: nn.Module) -> torch.dtype:
    """What a model's first layer works in."""
    dtypes = (tensor.dtype for tensor in (*model.parameters(), *model.buffers()))
    return next((dtype for dtype in dtypes if dtype.is_floating_point), torch.float32)


def flatten_result(result: Any) -> Flat:
    """Take apart what the model returned.

    Raises:
        ExportError: something in it is no tensor, constant or container, so no engine can return it.
    """
    try:
        return flatten(result, "output", result=True)
    except InputError as error:
        raise ExportError(f"result {error.subject}", got=error.got, allowed=error.allowed, fix=error.fix) from error


@dataclass(frozen=True)
class Captured:
    """A model's call, settled.

    Args:
        reference: the module as a function of the flat inputs.
        signature: with the outputs' dynamic dimensions still at the sample's sizes (export finds their names).
        profiles: at least one; without axes, one without ranges.
        sample: the sample's tensors in the signature's order, on the sample's device.
        output_axes: {output name: {dimension: axis name or None}} that the user named in dynamic_axes.
        precision: the lowest floating arithmetic that the model itself asks for: "fp32", "fp16" or "bf16".
        notes: what a user should know, e.g. that the model writes into an input.
    """

    reference: Reference
    signature: Signature
    profiles: tuple[Profile, ...]
    sample: tuple[torch.Tensor, ...]
    output_axes: Mapping[str, Mapping[int, str | None]]
    precision: str
    notes: tuple[str, ...] = ()


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


def user_source(error: BaseException) -> str:
    """ "FILE:LINE" of the innermost frame that belongs neither to torch nor to torch2engine, or ""."""
    return innermost_user_frame([(f.filename, f.lineno) for f in traceback.extract_tb(error.__traceback__)])


def innermost_user_frame(frames: Sequence[tuple[str, int | None]]) -> str:
    """ "FILE:LINE" of the last frame in user code (or a model library), or ""."""
    for filename, line in reversed(frames):
        path = Path(filename)
        in_stdlib = path.is_relative_to(_STDLIB) and "site-packages" not in path.parts
        if not (
            in_stdlib or filename.startswith(("<", "torch/")) or any(path.is_relative_to(folder) for folder in _FOREIGN)
        ):
            return f"{filename}:{line}"
    return ""


def resized(leaf: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """`leaf` cut or repeated along every dimension to `shape`."""
    for dim, size in enumerate(shape):
        if size != leaf.shape[dim]:
            index = torch.arange(size, device=leaf.device) % leaf.shape[dim]
            leaf = leaf.index_select(dim, index)
    return leaf.detach().clone(memory_format=torch.contiguous_format)
