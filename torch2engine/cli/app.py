"""Every command with its options, as click sees them. The only file that imports click.

Enters: the arguments of a command. Leaves: calls of the functions behind it, and an exit code. Separate because click
decides how options look, and nothing else does. The functions are imported when their command runs: `--help` is quick.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from torch2engine.cli.outcome import EXIT_CODES, PASSED, Outcome, outcome_of_error
from torch2engine.cli.terminal import show
from torch2engine.core.config import Flavour
from torch2engine.core.precisions import FLOAT32_PRECISIONS, PrecisionName
from torch2engine.core.version import __version__

__all__ = ["cli"]

F = TypeVar("F", bound=Callable[..., Any])
Run = Callable[..., Outcome]

_CODES = "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items())
_FLAVOURS = ("tensorrt", "tensorrt_rtx")
_RUNTIMES = ("tensorrt", "onnxruntime")
_PATH = click.Path(path_type=Path)


@click.group(epilog=f"\b\nExit codes:\n{_CODES}")
@click.version_option(__version__, prog_name="torch2engine")
def cli() -> None:
    """Turn PyTorch models into TensorRT engines, and prove that they answer like the models.

    A MODEL is FILE.py:NAME or PACKAGE.MODULE:NAME; NAME is an nn.Module, or a class or function that makes one.
    """


def _command(group: click.Group, name: str, example: str) -> Callable[[Run], click.Command]:
    """Make a command of a function that returns an `Outcome`.

    Args:
        group: where it belongs.
        name: the command's word.
        example: a line that works, without `torch2engine` in front. The help shows it, and a test runs it.
    """

    def decorate(function: Run) -> click.Command:
        @click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
        @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
        @functools.wraps(function)
        def run_and_show(as_json: bool, debug: bool, **options: Any) -> None:
            try:
                outcome = function(**options)
            except (Exception, KeyboardInterrupt) as error:
                if debug:
                    raise
                outcome = outcome_of_error(error)
            show(outcome, as_json)
            if outcome.code != PASSED:
                raise click.exceptions.Exit(outcome.code)

        return group.command(name, epilog=f"\b\nExample:\n  torch2engine {example}")(run_and_show)

    return decorate


def _several_options(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, in the order of the help."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_axis_option = click.option(
    "--axis",
    "axes",
    multiple=True,
    metavar="NAME[@INPUT.DIM,...]=MIN:OPT:MAX",
    help="A dynamic axis and its range; without places, the first dimension of every input.",
)
_sample_option = click.option(
    "--sample",
    multiple=True,
    metavar="SHAPE|FILE.npz|MODULE:NAME",
    help="The sample input: a shape such as 8x3x64x64 or x=float16:8x3 (repeat it for several inputs), the arrays of a "
    "file, or what a function returns.",
)
_runtime_option = click.option(
    "--runtime", type=click.Choice(_RUNTIMES), help="What runs a saved folder; onnxruntime needs no GPU."
)
_tolerance_options = _several_options(
    click.option("--rel-l2", type=float, help="The largest relative L2 error of an output."),
    click.option("--max-rel", type=float, help="The largest error of an element, relative to its surroundings."),
)
_comparison_options = _several_options(
    click.option("--precision", help="Whose default tolerance counts: fp32, tf32, fp16, bf16, int8 or fp8."),
    _tolerance_options,
)
_build_options = _several_options(
    click.option("--flavour", type=click.Choice(_FLAVOURS), help="Which TensorRT builds, if both are installed."),
    click.option("--refittable", is_flag=True, help="Build an engine that takes other weights later."),
    click.option(
        "--cache/--no-cache", default=True, help="Keep the engine in the user's cache, and take it from there."
    ),
)


@_command(cli, "deploy", "deploy net.py:make --sample 8x3x32x32 --axis batch=1:8:32 --runtime onnxruntime -o net.t2e")
@_several_options(
    click.argument("model_spec", metavar="MODEL"),
    _sample_option,
    _axis_option,
    click.option("--precision", help="fp32 (default), tf32, fp16, bf16, int8 or fp8."),
    click.option(
        "--runtime",
        type=click.Choice((*_RUNTIMES, "auto")),
        default="tensorrt",
        help="What answers; onnxruntime needs no GPU, and auto takes it where TensorRT can't run.",
    ),
    _build_options,
    _tolerance_options,
    click.option("-o", "--output", type=_PATH, help="The folder to write, e.g. model.t2e."),
)
def deploy_command(
    precision: PrecisionName | None,
    rel_l2: float | None,
    max_rel: float | None,
    flavour: Flavour | None,
    refittable: bool,
    **options: Any,
) -> Outcome:
    """Deploy a PyTorch MODEL: export, compare, build, compare again, save."""
    from torch2engine.cli.commands import BoundOptions, deploy_model
    from torch2engine.core.config import BuildConfig

    config = BuildConfig(flavour=flavour, refittable=refittable)
    return deploy_model(bounds=BoundOptions(precision, rel_l2, max_rel), config=config, **options)


@_command(cli, "build", "build net.onnx --axis batch=1:8:32 -o engine.t2e")
@_several_options(
    click.argument("source", type=_PATH),
    _axis_option,
    click.option("--precision", type=click.Choice(FLOAT32_PRECISIONS), help="How float32 products are computed."),
    _build_options,
    click.option("-o", "--output", type=_PATH, required=True, help="The folder to write, e.g. model.t2e."),
)
def build_command(flavour: Flavour | None, refittable: bool, **options: Any) -> Outcome:
    """Build an engine of SOURCE: an ONNX file, or an exported model that torch2engine saved."""
    from torch2engine.cli.commands import build_engine
    from torch2engine.core.config import BuildConfig

    return build_engine(config=BuildConfig(flavour=flavour, refittable=refittable), **options)


@_command(cli, "check", "check net.onnx net.py:make --sample 8x3x32x32 --axis batch=1:8:32")
@_several_options(
    click.argument("candidate", type=_PATH),
    click.argument("reference", metavar="REFERENCE"),
    _sample_option,
    _axis_option,
    _runtime_option,
    _comparison_options,
)
def check_command(
    precision: PrecisionName | None, rel_l2: float | None, max_rel: float | None, **options: Any
) -> Outcome:
    """Compare CANDIDATE with REFERENCE, and print the parity table.

    CANDIDATE is a folder that torch2engine saved, an ONNX file, or an engine file (.engine, .plan) of trtexec,
    Polygraphy or ultralytics. REFERENCE is a PyTorch model (FILE.py:NAME), or an ONNX file.
    """
    from torch2engine.cli.commands import BoundOptions, check

    return check(bounds=BoundOptions(precision, rel_l2, max_rel), **options)


@_command(cli, "diagnose", "diagnose net.t2e net.py:make --sample 8x3x32x32 --runtime onnxruntime")
@_several_options(
    click.argument("candidate", type=_PATH),
    click.argument("model_spec", metavar="MODEL"),
    _sample_option,
    _runtime_option,
    _tolerance_options,
)
def diagnose_command(**options: Any) -> Outcome:
    """Find the first module of MODEL whose output differs in CANDIDATE, a folder that torch2engine saved."""
    from torch2engine.cli.commands import diagnose_model

    return diagnose_model(**options)


@_command(cli, "compare", "compare net.t2e net.onnx --axis batch=1:8:32")
@_several_options(
    click.argument("reference", type=_PATH),
    click.argument("candidate", type=_PATH),
    click.option("--input", "inputs", type=_PATH, help="Compare on the arrays of this .npz file."),
    _axis_option,
    _runtime_option,
    _comparison_options,
)
def compare_command(
    precision: PrecisionName | None, rel_l2: float | None, max_rel: float | None, **options: Any
) -> Outcome:
    """Compare the answers of two saved models, ONNX files or engines."""
    from torch2engine.cli.commands import BoundOptions, compare

    return compare(bounds=BoundOptions(precision, rel_l2, max_rel), **options)


@_command(cli, "run", "run net.t2e --input images.npz --output answers.npz")
@_several_options(
    click.argument("path", type=_PATH),
    click.option("--input", "inputs", type=_PATH, required=True, help="An .npz file with an array for each input."),
    click.option("--output", type=_PATH, help="The .npz file to write."),
    _axis_option,
    _runtime_option,
)
def run_command(**options: Any) -> Outcome:
    """Answer the arrays of a file."""
    from torch2engine.cli.commands import run

    return run(**options)


@_command(cli, "bench", "bench net.t2e --size batch=8 --rounds 3")
@_several_options(
    click.argument("path", type=_PATH),
    click.option("--model", metavar="MODEL", help="Time this PyTorch model beside it, after comparing the answers."),
    click.option("--size", "sizes", multiple=True, metavar="NAME=SIZE", help="Sizes of the axes; by default three."),
    click.option("--rounds", type=click.IntRange(min=1), default=15, show_default=True, help="Rounds to measure."),
    _axis_option,
    _runtime_option,
)
def bench_command(**options: Any) -> Outcome:
    """Time calls: median and 95th percentile, on the host and on the GPU."""
    from torch2engine.cli.commands import bench

    return bench(**options)


@_command(cli, "bundle", "bundle everywhere.t2e engine.t2e")
@_several_options(
    click.argument("output", type=_PATH),
    click.argument("sources", type=_PATH, nargs=-1, required=True),
)
def bundle_command(**options: Any) -> Outcome:
    """Put engines of one model for several GPUs, flavours or versions into one folder. It needs no GPU."""
    from torch2engine.cli.commands import bundle_engines

    return bundle_engines(**options)


@_command(cli, "inspect", "inspect engine.t2e")
@_several_options(click.argument("path", type=_PATH))
def inspect_command(**options: Any) -> Outcome:
    """Show what a saved folder, an ONNX file or an engine file holds. It needs no GPU."""
    from torch2engine.cli.commands import inspect

    return inspect(**options)


@_command(cli, "report", "report net.t2e -o report.html")
@_several_options(
    click.argument("path", type=_PATH),
    click.option("-o", "--output", type=_PATH, help="The HTML page to write; without it the report is printed."),
    click.option("--time", "timed", is_flag=True, help="Time calls, too; an engine needs its GPU for that."),
)
def report_command(**options: Any) -> Outcome:
    """Show what deploy found about a saved folder, as text or as an HTML page. Without --time it needs no GPU."""
    from torch2engine.cli.commands import show_report

    return show_report(**options)


@_command(cli, "doctor", "doctor")
def doctor_command() -> Outcome:
    """Examine this machine: what is broken or surprising, why it matters, and the line that mends it."""
    from torch2engine.cli.doctor.examination import examine

    return examine()


@cli.group("cache")
def cache_group() -> None:
    """Look at the engines in the cache, and remove them."""


_folder_option = click.option("--folder", type=_PATH, help="Another cache than the user's.")


@_command(cache_group, "list", "cache list")
@_several_options(_folder_option)
def list_command(folder: Path | None) -> Outcome:
    """List the engines, the least recently used first."""
    from torch2engine.cli.cache import list_engines

    return list_engines(folder)


@_command(cache_group, "prune", "cache prune --max-bytes 1000000000")
@_several_options(
    _folder_option,
    click.option("--max-bytes", type=click.IntRange(min=0), help="Bytes that may stay; by default 20 GiB."),
)
def prune_command(folder: Path | None, max_bytes: int | None) -> Outcome:
    """Remove the least recently used engines until the rest fits."""
    from torch2engine.cli.cache import prune

    return prune(folder, max_bytes)


@_command(cache_group, "clear", "cache clear")
@_several_options(_folder_option)
def clear_command(folder: Path | None) -> Outcome:
    """Remove every engine."""
    from torch2engine.cli.cache import prune

    return prune(folder, 0)
