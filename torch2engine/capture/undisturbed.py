"""Running a module without lasting side effects.

Enters: a live module, in training or not. Leaves: the same module, bit for bit, after whatever ran in between in
evaluation mode. Separate because deploy is called from training code and may not disturb it.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn

from torch2engine.capture.model_state import ModelSnapshot, version_of
from torch2engine.capture.process_state import (
    exact_arithmetic,
    grad_and_autocast_off,
    process_state_lock,
    restored_random_state,
)
from torch2engine.core.errors import ExportError

__all__ = ["training_flags_off", "undisturbed"]


@contextmanager
def undisturbed(model: nn.Module, is_exact: bool = True) -> Generator[None]:
    """Run the body with `model` in evaluation mode and put everything back afterwards, also after an error.

    It restores the training flag of every submodule, hooks, and the identity of parameters, buffers and gradients. It
    restores every value that is reachable from the module's attributes: buffers, other tensors, NumPy arrays,
    containers, plain objects, unregistered modules and random generators. It restores what belongs to the process: the
    RNG state of Python, NumPy, CPU and GPUs, autocast, grad mode, the current device, the float32 switches and the
    attention backends. Where other threads run, the RNG state advances instead; otherwise they would draw the same
    numbers again. Their calls of `model` wait; otherwise they would run in evaluation mode.

    Args:
        model: the module.
        is_exact: False leaves the user's float32 switches and attention kernels on, as for calls that are timed.

    Raises:
        ExportError: forward writes into its own parameters or adds to their gradients, which can't be undone.
    """
    with process_state_lock():
        guarded = _GuardedModel(model)
        arithmetic = exact_arithmetic if is_exact else grad_and_autocast_off
        with restored_random_state(), arithmetic():
            try:
                with _calls_of_other_threads_wait(model), training_flags_off(model):
                    yield
            except Exception as error:
                guarded.check(error)  # a clearer error than the one that it has led to
                raise
            finally:
                guarded.restore()
    guarded.check()


@contextmanager
def _calls_of_other_threads_wait(model: nn.Module) -> Generator[None]:
    """Let other threads' calls of the model wait until the flags are set again; a running call goes on."""
    owner = threading.get_ident()

    def wait(module: nn.Module, args: object) -> None:
        # Copies of the model have this hook too. They keep flags of their own, and their calls may be this thread's.
        if module is model and threading.get_ident() != owner:
            with process_state_lock():
                pass

    if isinstance(model, torch.jit.ScriptModule) or model.__dict__.get("_compiled_call_impl") is not None:  # not traced
        yield
        return
    hook = model.register_forward_pre_hook(wait, prepend=True)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def training_flags_off(model: nn.Module) -> Generator[None]:
    """Clear the training flag of every submodule, and set it as it was after the body."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            _set_training_flag(module, False)
        yield
    finally:
        for module, flag in flags:
            _set_training_flag(module, flag)


def _set_training_flag(module: nn.Module, flag: bool) -> None:
    module.__dict__["training"] = flag  # models override .train(), e.g. to merge adapters


class _GuardedModel:
    """A snapshot of the module, and marks of what can't be put back."""

    def __init__(self, model: nn.Module) -> None:
        self._snapshot = ModelSnapshot(model)
        self._parameters = [(name, parameter, version_of(parameter)) for name, parameter in model.named_parameters()]
        leaves = [(name, leaf) for name, leaf in (*model.named_buffers(), *model.named_parameters()) if leaf.is_leaf]
        self._grads = [(name, leaf, leaf.grad) for name, leaf in leaves]
        self._grad_versions = [None if grad is None else version_of(grad) for _, _, grad in self._grads]

    def restore(self) -> None:
        """Put back all but the values of parameters and gradients."""
        self._snapshot.restore()
        for _, leaf, grad in self._grads:
            if leaf.grad is not grad:
                leaf.grad = grad

    def check(self, error: Exception | None = None) -> None:
        """Report a change that can't be undone.

        Args:
            error: that ended the body; it becomes the cause.

        Raises:
            ExportError: parameters or gradients were written to; names them.
        """
        changed = [name for name, parameter, version in self._parameters if version_of(parameter) != version]
        if changed:
            raise ExportError(
                "model",
                got=f"a forward that writes into its own parameters ({', '.join(changed)}), which keep the new values",
                allowed="a forward that only reads them",
                fix="move such updates out of forward",
            ) from error
        grads = zip(self._grads, self._grad_versions, strict=True)
        changed = [name for (name, _, grad), version in grads if grad is not None and version_of(grad) != version]
        if changed:
            raise ExportError(
                "model",
                got=f"a forward that adds to the gradients of {', '.join(changed)}, which keep the new values",
                allowed="a forward that computes no gradients of its parameters",
                fix="use torch.autograd.grad in forward, or move the backward pass out of it",
            ) from error
