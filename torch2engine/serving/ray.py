"""Ray Data: rows of a Dataset → the same rows with the model's answers, an actor for each GPU.

Enters: a Dataset and an artifact's folder. Leaves: a Dataset. Separate, and light, because every actor imports this
file: it loads no torch, and Ray only in `predict`. Ray distributes, restarts actors and repeats what they lost.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.core.config import RuntimeConfig
from torch2engine.core.errors import InputError, InstallationError
from torch2engine.core.wording import did_you_mean, kind_of
from torch2engine.serving.array_runner import Array, Source, find_artifact
from torch2engine.serving.batch_runner import BatchRunner, rows_per_call

__all__ = ["Predictor", "actor_argument", "import_ray", "predict"]

# Ray keeps larger constructor arguments in the object store, and an actor can't restart once they are lost there.
_MOST_ARGUMENT_BYTES = 100_000
_CALLS_PER_BATCH = 8
# Of an actor. From the end of one block to the start of the next, Ray (2.60) takes as long as several calls of an
# engine. With two batches at a time it is often between blocks with both, and the engine waits.
_BATCHES_AT_A_TIME = 4
_DEPTH = 2  # calls under way of each batch: eight in all, which is enough, and their memory is page-locked
_TASKS_PER_ACTOR = 2 * _BATCHES_AT_A_TIME


class Predictor:
    """A callable class for `Dataset.map_batches` with ``batch_format="numpy"``: rows in, the same rows answered.

    `predict` is the short way to use it. An actor makes it once; its constructor loads the artifact and warms it up. An
    engine runs on the first GPU that Ray shows to the actor, an exported model on the CPU.

    Args:
        artifact: the folder that `save` wrote, where every worker can read it; or an artifact.
        columns: input name -> the column that holds it; None for columns with the inputs' own names.
        keep: columns that stay beside the answers, such as an id, since Ray promises no order. None keeps all that are
            no inputs.
        batch_size: rows of one call of the engine; None for the most that a profile allows.
        streams, runtime_config: as for `Processor`.

    Raises:
        InputError: an unknown input in `columns`, or a kept column with the name of an output.
        Torch2EngineError: the artifact can't run here, as `Processor` says.
    """

    def __init__(
        self,
        artifact: Source,
        columns: Mapping[str, str] | None = None,
        keep: Sequence[str] | None = None,
        batch_size: int | None = None,
        streams: int = 2,
        runtime_config: RuntimeConfig = RuntimeConfig(),
    ) -> None:
        self._runner = BatchRunner(find_artifact(artifact), streams, runtime_config, batch_size, _DEPTH)
        names = [spec.name for spec in self._runner.signature.call_inputs]
        given = dict(columns or {})
        for name in given:
            if name not in names:
                fix = did_you_mean(name, names, given) or "name one of these inputs"
                raise InputError("columns", got=f"an input '{name}'", allowed=", ".join(names), fix=fix)
        self._columns = {name: given.get(name, name) for name in names}
        self._keep = None if keep is None else tuple(keep)
        self._runner.warm_up()

    def __call__(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Answer a batch of any number of rows.

        Args:
            batch: column -> array; only read.

        Returns:
            the kept columns, and an array for each output.

        Raises:
            InputError, ShapeError, DtypeError: a column is missing, or holds what the model does not take.
        """
        inputs = {name: _column(batch, column, f"input '{name}'") for name, column in self._columns.items()}
        kept = self._kept_columns(batch)
        answers = self._runner(inputs)
        if clash := sorted(kept.keys() & answers.keys()):
            raise InputError(
                f"column '{clash[0]}'",
                got="a kept column with the name of an output",
                allowed="other names than the outputs'",
                fix="rename the column, or leave it out of keep",
            )
        return {**kept, **answers}

    def _kept_columns(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        if self._keep is None:
            inputs = set(self._columns.values())
            return {name: array for name, array in batch.items() if name not in inputs}
        return {name: _column(batch, name, "keep") for name in self._keep}


def predict(
    dataset: Any,
    artifact: Source,
    *,
    actors: int | None = None,
    columns: Mapping[str, str] | None = None,
    keep: Sequence[str] | None = None,
    batch_size: int | None = None,
    streams: int = 2,
    runtime_config: RuntimeConfig = RuntimeConfig(),
    **ray_options: Any,
) -> Any:
    """Answer every row of a Ray Dataset, lazily, as `Dataset.map_batches` does.

    Each actor answers four batches at a time, so that Ray's work for some overlaps the engine's for the others. They
    have eight calls under way, whose inputs and outputs lie in page-locked memory as well. Ray makes an actor anew that
    dies, and repeats what it had not given back.

    Args:
        dataset: a ray.data.Dataset. Send bytes and let the graph scale them (`Preprocess`): uint8 is a quarter of
            float32.
        artifact: the folder that `save` wrote, where every worker can read it; or a small artifact.
        actors: how many; None for one on every GPU of the cluster, or one in all for an exported model.
        columns, keep, batch_size, streams, runtime_config: as for `Predictor`.
        ray_options: passed on to `map_batches`, e.g. ``num_cpus=2``. `batch_size` of `map_batches` is eight calls of
            the engine, `num_gpus` is 1 for an engine. `compute` takes the place of `actors` and of the four batches.

    Returns:
        a ray.data.Dataset with the kept columns and one for each output. Its rows come in any order.

    Raises:
        InstallationError: no Ray.
        InputError: no Dataset, or an artifact in memory that is too large to be an actor's argument.
        ArtifactError: no artifact is there, or it is damaged.
    """
    data = import_ray("ray.data")
    if not isinstance(dataset, data.Dataset):
        raise InputError(
            "dataset", got=kind_of(dataset), allowed="a ray.data.Dataset", fix="make one, e.g. with ray.data.from_numpy"
        )
    found = find_artifact(artifact)
    source = actor_argument(artifact)
    is_engine = not isinstance(found, OnnxArtifact)
    options: dict[str, Any] = {"num_gpus": 1} if is_engine else {}
    if actors is None:
        actors = max(1, int(import_ray("ray").cluster_resources().get("GPU", 1))) if is_engine else 1
    options["compute"] = data.ActorPoolStrategy(
        size=actors,
        max_tasks_in_flight_per_actor=_TASKS_PER_ACTOR,
        max_concurrent_calls_per_actor=_BATCHES_AT_A_TIME,
        enable_true_multi_threading=True,
    )
    arguments = {"columns": columns, "keep": keep, "streams": streams, "runtime_config": runtime_config}
    return dataset.map_batches(
        Predictor,
        fn_constructor_kwargs={"artifact": source, "batch_size": batch_size, **arguments},
        batch_format="numpy",
        **{"batch_size": _CALLS_PER_BATCH * rows_per_call(found, batch_size), **options, **ray_options},
    )


def import_ray(part: str) -> Any:
    """Import a part of Ray.

    Args:
        part: "ray.data" or "ray.serve".

    Raises:
        InstallationError: it is missing.
    """
    try:
        return importlib.import_module(part)
    except ModuleNotFoundError as error:
        raise InstallationError(
            "Ray", got=f"no module {error.name}", allowed="an installed Ray", fix="`pip install 'torch2engine[ray]'`"
        ) from error


def actor_argument(artifact: Source) -> Source:
    """Make the argument of an actor's constructor: an absolute path, or a small artifact.

    Raises:
        InputError: a large artifact.
    """
    if isinstance(artifact, (str, os.PathLike)):
        return os.path.abspath(artifact)  # actors have other working directories
    files = artifact.manifest()["files"]
    size = sum(entry["bytes"] for entry in files.values())
    if size > _MOST_ARGUMENT_BYTES:
        raise InputError(
            "artifact",
            got=f"an artifact of {size} bytes in memory",
            allowed=f"a path, or an artifact of at most {_MOST_ARGUMENT_BYTES} bytes, since Ray can lose larger ones",
            fix="save it where every worker can read it, and pass that folder",
        )
    return artifact


def _column(batch: Mapping[str, Array], column: str, subject: str) -> Array:
    if column not in batch:
        raise InputError(
            subject,
            name=column,
            got=f"no column '{column}'",
            allowed=f"one of {', '.join(batch)}",
            fix=did_you_mean(column, list(batch), {}) or "name the column, in columns= for an input",
        )
    return batch[column]
