"""Submodules of a model or a pipeline that engines answer in their place, until they are restored.

Enters: deployed modules by the names of submodules. Leaves: `DeployedSubmodules`, which restores and saves them.
Separate because this file deploys nothing: `torch_compile` does, or an earlier process did.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from torch2engine.core.config import Runtime
from torch2engine.core.errors import ArtifactError, InputError
from torch2engine.core.json_rules import TEXT, Items, SchemaError
from torch2engine.core.package import public
from torch2engine.core.wording import did_you_mean, kind_of
from torch2engine.deploy_steps.public_functions.load import load
from torch2engine.deployed.deployed_module import DeployedModule
from torch2engine.deployed.weight_sync import Refit
from torch2engine.fallback.inference_only import InferenceOnly
from torch2engine.parity.parity_report import ParityReport

__all__ = [
    "DeployedSubmodules",
    "choose_submodules",
    "load_submodules",
    "note_on_uncalled",
    "noted_children",
    "without_swap",
]

_LIST = "submodules.json"
_FOLDER = "submodule-{}.t2e"
_SHOWN = 8


class _Swap:
    """One submodule whose forward is an engine's.

    Args:
        submodule: in PyTorch.
        module: the deployed one.
    """

    def __init__(self, submodule: Any, module: DeployedModule[Any]) -> None:
        self._submodule = submodule
        self._has_own = "forward" in vars(submodule)
        self._own = vars(submodule).get("forward")
        answer = InferenceOnly(module.forward, submodule.forward)  # a module would be a child, and in the state_dict
        submodule.forward = update_wrapper(answer, submodule.forward, updated=())  # pipelines read its signature

    def undo(self) -> None:
        """Put the forward back that was there."""
        vars(self._submodule).pop("forward", None)
        if self._has_own:
            self._submodule.forward = self._own


@public
@dataclass
class DeployedSubmodules:
    """Submodules whose calls engines answer; made by `deploy_submodules` and `load_submodules`.

    A submodule stays in its place with its attributes, parameters and hooks. Only its forward is the engine's. A call
    with inputs that require gradients, while these are enabled, is PyTorch's, with one warning.

    Args:
        modules: name -> the deployed module that answers.
        parity: comparisons of the whole call; none for loaded submodules.
        notes: what a user should know, such as submodules that were never called.

    >>> @torch.no_grad()
    ... def call():
    ...     return model(sample)
    >>> with t2e.deploy_submodules(model, call, ["head"], runtime="onnxruntime") as deployed:
    ...     print(deployed.modules["head"])
    ORTModule(input: float32[8, 16] -> output: float32[8, 10]; fp32, device=cpu)
    """

    modules: Mapping[str, DeployedModule[Any]]
    parity: Sequence[ParityReport] = ()
    notes: Sequence[str] = ()
    _swaps: list[_Swap] = field(default_factory=list[_Swap])
    _references: Mapping[str, nn.Module] = field(default_factory=dict[str, nn.Module])

    @classmethod
    def swap_in(
        cls,
        submodules: Mapping[str, nn.Module],
        modules: Mapping[str, DeployedModule[Any]],
    ) -> DeployedSubmodules:
        """Let deployed modules answer.

        Args:
            submodules: in PyTorch, by name.
            modules: for each of them the one that answers.
        """
        references = {name: without_swap(submodules[name]) for name in modules}
        swaps = [_Swap(submodules[name], module) for name, module in modules.items()]
        return cls(modules, _swaps=swaps, _references=references)

    def refit(self, **options: Any) -> dict[str, Refit]:
        """Let all engines take over the weights that their submodules have now, e.g. with an adapter merged.

        Args:
            options: as for the `refit` of a deployed module, but its model.

        Returns:
            what changed, by name.

        Raises:
            RefitError: the submodules were not deployed with refittable=True, or as for a deployed module.
        """
        return {name: module.refit(self._references[name], **options) for name, module in self.modules.items()}

    def restore(self) -> None:
        """Let PyTorch answer again, by the very modules that were there before."""
        while self._swaps:
            self._swaps.pop().undo()

    def save(self, folder: str | Path) -> Path:
        """Write all deployed modules to a folder; `load_submodules` reads it.

        Args:
            folder: it is made if it is missing. What an earlier save wrote there is replaced.

        Raises:
            ArtifactError: something else is in the way, or writing failed.
        """
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        for number, module in enumerate(self.modules.values()):
            module.save(place / _FOLDER.format(number))
        staged = place / f".{_LIST}"
        staged.write_text(json.dumps(list(self.modules), indent=1), encoding="utf-8")
        os.replace(staged, place / _LIST)  # last: a folder without it is not whole
        return place

    def __str__(self) -> str:
        lines = [f"{name}: {module.runtime}, {module.precision}" for name, module in self.modules.items()]
        lines += [str(report) for report in self.parity]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def __enter__(self) -> DeployedSubmodules:
        return self

    def __exit__(self, *error: object) -> None:
        self.restore()


def without_swap(submodule: nn.Module) -> nn.Module:
    """The same module as another object: it shares all parameters, buffers and children, and keeps its own forward.

    It stays the reference of a deployed module while that answers in the submodule's place.
    """
    return copy.copy(submodule)


def all_submodules(owner: Any) -> Iterator[tuple[str, nn.Module]]:
    """The submodules of a model, or of an object such as a pipeline that has modules as attributes; by dotted names."""
    if isinstance(owner, nn.Module):
        yield from _named_modules(owner)
        return
    components = getattr(owner, "components", None)  # where pipelines of diffusers list them
    attributes: dict[str, Any] = {**(components if isinstance(components, Mapping) else {}), **vars(owner)}
    for attribute, value in attributes.items():
        if isinstance(value, nn.Module):
            yield attribute, value
            yield from ((f"{attribute}.{name}", module) for name, module in _named_modules(value))


def _named_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """All modules inside a model, by dotted names."""
    named = cast("Iterator[tuple[str, nn.Module]]", model.named_modules())
    return [(name, module) for name, module in named if name]


def choose_submodules(owner: Any, patterns: Sequence[str]) -> dict[str, nn.Module]:
    """The submodules that patterns name. Of nested submodules the outermost is taken.

    Args:
        owner: a model, or an object with modules as attributes.
        patterns: as in a shell, e.g. "unet" or "*.attention".

    Raises:
        InputError: a pattern matches none; or no patterns.
    """
    names = dict(all_submodules(owner))
    if isinstance(patterns, str) or not patterns:
        raise InputError("patterns", got=repr(patterns), allowed="a list of names", fix="e.g. ['unet', 'vae.decoder']")
    chosen: dict[str, nn.Module] = {}
    for pattern in patterns:
        matches = [name for name in names if fnmatchcase(name, pattern)]
        if not matches:
            some = ", ".join(list(names)[:_SHOWN]) or f"none, in {kind_of(owner)}"
            more = ", ..." if len(names) > _SHOWN else ""
            raise InputError(
                f"patterns, {pattern!r}",
                got="no such submodule",
                allowed=f"names such as {some}{more}",
                fix=did_you_mean(pattern, list(names)) or "use one of these",
            )
        chosen |= {name: names[name] for name in matches}
    return {name: module for name, module in chosen.items() if not any(_is_above(other, name) for other in chosen)}


def _is_above(other: str, name: str) -> bool:
    return name.startswith(f"{other}.")


@contextmanager
def noted_children(chosen: Mapping[str, nn.Module]) -> Generator[dict[str, list[str]]]:
    """Note which children of submodules are called.

    Args:
        chosen: submodules by name.

    Yields:
        {submodule: names of its called children, in the order of their first calls}; it grows with the calls.
    """
    called: dict[str, list[str]] = {name: [] for name in chosen}

    def note(parent: str, child: str, *_: Any) -> None:
        if child not in called[parent]:
            called[parent].append(child)

    hooks = [
        child.register_forward_pre_hook(partial(note, parent, f"{parent}.{name}"))
        for parent, module in chosen.items()
        for name, child in module.named_children()
    ]
    try:
        yield called
    finally:
        for hook in hooks:
            hook.remove()


def note_on_uncalled(name: str, called_children: Sequence[str]) -> str:
    """What a user should know of a submodule that was never called itself.

    Args:
        name: of the submodule.
        called_children: names of the submodules inside it that were called.
    """
    note = f"'{name}' was never called, and is as it was"
    return f"{note}; name what is called in it: {', '.join(called_children)}" if called_children else note


def load_submodules(
    owner: Any, folder: str | Path, device: torch.device | str | None = None, runtime: Runtime | None = None
) -> DeployedSubmodules:
    """Let engines answer that `DeployedSubmodules.save` wrote.

    Args:
        owner: the model or pipeline, of the structure that was saved.
        folder: where they were saved.
        device, runtime: as for `load`.

    Raises:
        ArtifactError: the folder or a module in it is damaged.
        InputError: the owner has no such submodule.

    >>> @torch.no_grad()
    ... def call():
    ...     return model(sample)
    >>> with t2e.deploy_submodules(model, call, ["head"], runtime="onnxruntime") as deployed:
    ...     folder = deployed.save("submodules")
    >>> with t2e.load_submodules(model, folder) as loaded:
    ...     print(loaded)
    head: ONNX Runtime, fp32
    """
    place = Path(folder)
    listed = _read_names(place / _LIST)
    submodules = dict(all_submodules(owner))
    for name in listed:
        if name not in submodules:
            raise InputError(
                f"submodule '{name}'",
                got=f"{kind_of(owner)} without it",
                allowed="a model or pipeline of the structure that was saved",
                fix=did_you_mean(name, list(submodules)) or "pass the same model or pipeline",
            )
    modules = {
        name: load(place / _FOLDER.format(number), device, runtime=runtime) for number, name in enumerate(listed)
    }
    return DeployedSubmodules.swap_in(submodules, modules)


def _read_names(path: Path) -> list[str]:
    """The names of the submodules in a saved folder.

    Raises:
        ArtifactError: they can't be read.
    """
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
        Items(TEXT).check(names, "names")
    except (OSError, ValueError, SchemaError) as error:
        raise ArtifactError(
            f"folder '{path.parent}'",
            got=f"no readable {_LIST}",
            allowed="what DeployedSubmodules.save wrote",
            fix="save the submodules again",
            path=str(path),
        ) from error
    return names
