"""A deployed module or an artifact → what each torch module's arithmetic is computed in.

Enters: what deploy(), load() or export() gave. Leaves: a `PrecisionReport`. Separate because it reads both the graph
and, for a TRTModule, TensorRT's list of the engine's layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.core.errors import ArtifactError, InputError
from torch2engine.core.precision_report import PrecisionReport
from torch2engine.core.spec import Signature
from torch2engine.core.wording import kind_of
from torch2engine.deployed.deployed_module import DeployedModule
from torch2engine.deployed.made_inputs import zeros
from torch2engine.deployed.onnxruntime.ort_module import ORTModule
from torch2engine.deployed.trt.trt_module import TRTModule
from torch2engine.onnx_graph.node_origins import node_modules
from torch2engine.precision.calibration import named_arrays
from torch2engine.precision.graph.attention_outcomes import attention_outcomes
from torch2engine.precision.graph.count_multiply_adds import count_in_model, observed_shapes
from torch2engine.precision.graph.engine_layers import engine_precisions, layers_of_modules, read_layers

__all__ = ["PrecisionReport", "precision_report", "report_at_opt"]


def precision_report(deployed: DeployedModule[Any] | OnnxArtifact | EngineArtifact) -> PrecisionReport:
    """Tell what each module's convolutions, matrix products and recurrent layers are computed in.

    Args:
        deployed: what deploy() or load() gave, or an artifact. It binds a TRTModule to its GPU and reads its engine's
            layers. For anything else it reads the graph.

    Raises:
        InputError: anything else.
        ArtifactError: an engine that was saved without its ONNX.
        DeviceError, InstallationError: a TRTModule without its GPU.

    >>> print(t2e.precision_report(module))
    100.0 % of the multiply-adds in fp32
    module  precision  products  multiply-adds
    conv    fp32       1         13,284,864
    head    fp32       1         1,280
    """
    artifact: object = deployed
    if isinstance(deployed, DeployedModule):
        artifact = deployed._artifact  # pyright: ignore[reportPrivateUsage]  # a step that composes it
    if not isinstance(artifact, (OnnxArtifact, EngineArtifact)):
        raise InputError(
            "precision_report",
            got=kind_of(deployed),
            allowed="a deployed module or an artifact",
            fix="deploy the model first",
        )
    onnx_path = artifact.checked_onnx_path
    if onnx_path is None:
        raise ArtifactError(
            "precision_report",
            got="an engine without its ONNX model",
            allowed="one with it, since a plan alone does not say which module a layer comes from",
            fix="ask the module that deploy() gave, or load the folder that its save() wrote",
        )
    profiles = artifact.profiles
    opt_sizes = [profiles[0].sizes(1)] if profiles else None
    inputs = next(iter(zeros(artifact.signature, profiles, opt_sizes, torch.device("cpu"))))
    return _report(deployed, onnx_path, artifact.signature, inputs, may_run=True)


def report_at_opt(
    deployed: TRTModule | ORTModule, onnx_path: Path, cases: Sequence[ParityCase], *, may_run: bool
) -> PrecisionReport:
    """Report on a deployed module as `precision_report`, at the sizes of the parity case at opt.

    Args:
        deployed: a module.
        onnx_path: its ONNX graph.
        cases: the parity cases.
        may_run: whether ONNX Runtime runs the graph where shapes depend on values; else such products count 0.
    """
    case = next((case for case in cases if case.kind == "opt"), cases[0])
    return _report(deployed, onnx_path, deployed.signature, case.inputs, may_run=may_run)


def _report(
    deployed: object, onnx_path: Path, signature: Signature, inputs: Sequence[torch.Tensor], *, may_run: bool
) -> PrecisionReport:
    import onnx  # only here: it takes long to load

    def observe(names: Sequence[str]) -> Mapping[str, Sequence[int]]:
        return observed_shapes(onnx_path, names, named_arrays(signature, inputs))

    model: Any = onnx.load(str(onnx_path), load_external_data=False)
    shapes = {spec.name: tuple(leaf.shape) for spec, leaf in zip(signature.inputs, inputs, strict=True)}
    nodes = count_in_model(model, shapes, observe if may_run else None)
    layers = read_layers(deployed.layers()) if isinstance(deployed, TRTModule) else ()
    counts_by_module = layers_of_modules(layers, node_modules(model))
    attention = attention_outcomes(model, onnx_path.parent, layers)  # last, since it changes the model
    if not isinstance(deployed, TRTModule):
        return PrecisionReport(nodes, attention=attention)
    precision_of_node = engine_precisions(layers, nodes)
    layer_counts = Counter(layer.precision for layer in layers if layer.precision)
    return PrecisionReport(
        tuple(replace(node, engine=precision_of_node[node.name]) for node in nodes),
        dict(sorted(layer_counts.items())),
        counts_by_module,
        attention,
    )
