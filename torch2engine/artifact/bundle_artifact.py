"""`BundleArtifact`: one exported model with plans for several GPUs, flavours and versions, on disk.

Enters: engines that were built from one exported model, or a folder that somebody saved. Leaves: the same, checked, and
the engine of each plan. Separate because it holds several engines whose ONNX files are the same.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from torch2engine.artifact.artifact import Artifact
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.files import ArtifactFiles
from torch2engine.artifact.hardware_fit import choose_plan, describe_target
from torch2engine.artifact.manifest_fields import BundledPlan, Hardware, differing_field
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.saved_folder import PLAN, REPORT, RUNTIME_CACHE, plan_file
from torch2engine.artifact.scratch_folder import scratch_folder
from torch2engine.core.package import public

__all__ = ["BundleArtifact"]

_OWN_FILES = (PLAN, RUNTIME_CACHE, REPORT)  # what each plan has for itself; the plans share all others
_SAME = "the same model in every artifact of a bundle"
_BUILD_ALIKE = "build each of them from one exported model: t2e.build(t2e.OnnxArtifact.load(path))"


@public
class BundleArtifact(Artifact):
    """An exported model with several plans, of which `torch2engine.load` and `Processor` take the one for their GPU.

    `torch2engine.bundle` makes it.

    >>> folder = t2e.bundle("everywhere.t2e", [engine])
    >>> loaded = t2e.BundleArtifact.load(folder)
    >>> loaded.precision, [built.flavour for built in loaded.plans.values()]
    ('fp32', ['tensorrt_rtx'])
    """

    kind = "bundle"

    __slots__ = ()

    @classmethod
    def of_engines(cls, engines: Sequence[EngineArtifact]) -> BundleArtifact:
        """Put engines of one model together; two equal plans become one.

        Args:
            engines: at least one, each with the ONNX files that it was built from.

        Raises:
            ArtifactError: an engine lacks its ONNX files, two engines are of different models, or two different plans
                are for the same GPUs.
        """
        first = engines[0]
        models = [engine.exported() for engine in engines]
        for model in models[1:]:
            cls._check_same_model(model, models[0])
        plans: dict[str, EngineArtifact] = {}
        for engine in engines:
            name = _plan_name(engine.hardware)
            if plans.setdefault(name, engine).plan_sha256 != engine.plan_sha256:
                raise engine._refusal(
                    f"another plan for {describe_target(engine.hardware)} than '{plans[name]._artifact_files}' has",
                    "one plan for each",
                    "leave one of the two out; t2e.BundleArtifact.load(path).engine(name) gives a bundle's one by one",
                )
        owner = scratch_folder()
        parts = [models[0]._artifact_files, *(cls._own_files(name, engine) for name, engine in plans.items())]
        for part in parts:
            part.link_into(owner.path)
        files = ArtifactFiles(folder=owner.path, owner=owner, names=[name for part in parts for name in part.names])
        for part in parts:
            files.take_records(part)
        common = {
            name: version
            for name, version in first.versions.items()
            if all(engine.versions.get(name) == version for engine in engines)
        }
        fields = dataclasses.replace(
            first._fields,
            kind=cls.kind,
            hardware=None,
            versions=common,
            plans={
                name: BundledPlan(hardware=engine.hardware, versions=engine.versions) for name, engine in plans.items()
            },
        )
        return cls.from_parts(fields, files)

    @property
    def plans(self) -> Mapping[str, Hardware]:
        """{name of a plan: the hardware of its build}, by name."""
        return {name: plan.hardware for name, plan in sorted(self._bundled.items())}

    @property
    def _bundled(self) -> Mapping[str, BundledPlan]:
        assert self._fields.plans is not None, "a bundle's manifest has plans"
        return self._fields.plans

    def engine(self, name: str) -> EngineArtifact:
        """The engine of one plan, with the ONNX files.

        Args:
            name: one of `plans`.

        Raises:
            ArtifactError: there is no such plan.
        """
        plan = self._bundled.get(name)
        if plan is None:
            allowed = f"one of {', '.join(self.plans)}"
            raise self._refusal(f"no plan '{name}'", allowed, "use one of these names")
        own = {plan_file(name, file): file for file in _OWN_FILES}
        names = {file: own.get(file, file) for file in self.files if file in own or not self._is_of_a_plan(file)}
        fields = dataclasses.replace(
            self._fields, kind=EngineArtifact.kind, hardware=plan.hardware, versions=plan.versions, plans=None
        )
        return EngineArtifact.from_parts(fields, self._artifact_files.renamed(names))

    def engine_for(self, current: Sequence[Hardware]) -> EngineArtifact:
        """The engine that fits a GPU best, by the rules of `choose_plan`.

        Args:
            current: the GPU, once for each flavour that is installed. With none at all, it is the first plan's engine:
                who opens it hears what is missing.

        Raises:
            ArtifactError: no plan runs there.
        """
        name = choose_plan(self.plans, current) if current else next(iter(self.plans))
        if name is not None:
            return self.engine(name)
        here = " and ".join(f"{one.flavour} {one.flavour_version}" for one in current)
        gpu = current[0].gpu or "this machine"
        raise self._refusal(
            "plans of " + ", ".join(map(_described, self.plans.values())),
            f"one of {here} for {gpu}",
            "t2e.load(path, on_mismatch='rebuild') builds one, and t2e.bundle adds what t2e.build made here",
        )

    def exported(self) -> OnnxArtifact:
        """The exported model that all plans were built from."""
        fields = dataclasses.replace(self._fields, kind=OnnxArtifact.kind, plans=None)
        names = {file: file for file in self.files if not self._is_of_a_plan(file)}
        return OnnxArtifact.from_parts(fields, self._artifact_files.renamed(names))

    def _is_of_a_plan(self, file: str) -> bool:
        return any(file == plan_file(plan, name) for plan in self._bundled for name in _OWN_FILES)

    @classmethod
    def _check_same_model(cls, model: OnnxArtifact, expected: OnnxArtifact) -> None:
        """Compare an engine's model with that of the first one.

        Raises:
            ArtifactError: naming the first difference.
        """
        name = differing_field(model._fields, expected._fields)
        difference = f"other {name} than in" if name else cls._differing_file(model, expected)
        if difference:
            raise model._refusal(f"{difference} '{expected._artifact_files}'", _SAME, _BUILD_ALIKE)

    @staticmethod
    def _differing_file(model: OnnxArtifact, expected: OnnxArtifact) -> str:
        for file in sorted({*model.files, *expected.files}):
            if file not in model.files:
                return f"no '{file}', which is in"
            if file not in expected.files:
                return f"a '{file}', which is missing in"
            if model._artifact_files.record(file) != expected._artifact_files.record(file):
                return f"another '{file}' than in"
        return ""

    @staticmethod
    def _own_files(name: str, engine: EngineArtifact) -> ArtifactFiles:
        """The files that a plan does not share, as a bundle names them."""
        own = {file: plan_file(name, file) for file in _OWN_FILES if file in engine.files}
        return engine._artifact_files.renamed(own)


def _plan_name(built: Hardware) -> str:
    """A name for a plan's files: flavour, version, and the GPUs that it is for."""
    if built.compute_capabilities:
        target = "-".join(f"{major}.{minor}" for major, minor in sorted(built.compute_capabilities))
    else:
        target = re.sub(r"[^A-Za-z0-9]+", "-", built.gpu or "any").strip("-")
    level = f"-{built.hardware_compatibility}" if built.hardware_compatibility else ""
    return f"{built.flavour}-{built.flavour_version}-{target}"[:180] + level


def _described(built: Hardware) -> str:
    return f"{built.flavour} {built.flavour_version} for {describe_target(built)}"
