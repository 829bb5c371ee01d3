"""The example of diffusers' pipeline in one process, and its saved engines in another that has deployed nothing.

Enters: an empty folder. Leaves: a line of JSON with what both processes saw. Separate because both fork from one
process that has imported diffusers, which takes as long as what they do.
"""

from __future__ import annotations

import json
import multiprocessing
import runpy
import sys
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

import torch2engine as t2e
from tests.support.paths import REPOSITORY

EXAMPLE = str(REPOSITORY / "examples" / "stable_diffusion.py")
IMAGE = "adapted.pt"


def deploy_and_save(folder: Path) -> None:
    """Run the example. Save its engines, which have taken over an adapter, and the image that they made."""
    example = runpy.run_path(EXAMPLE, run_name="__main__")
    example["engines"].save(folder)
    torch.save(example["adapted"], folder / IMAGE)


def load_and_look(folder: Path, example: dict[str, Any]) -> dict[str, Any]:
    """Let the saved engines answer in a pipeline without the adapter, then with zeros for weights, and restore it.

    Returns:
        what the engines' images and the pipeline's attributes were.
    """
    pipe = example["make_pipeline"]()

    def image() -> torch.Tensor:
        return example["image_of"](pipe, "dog")

    before, attributes = image(), attributes_of(pipe)
    loaded = t2e.load_submodules(pipe, folder)
    answer, read = image(), what_pipelines_read(pipe)
    weights = pipe.unet.state_dict()
    pipe.unet.load_state_dict({name: torch.zeros_like(weight) for name, weight in weights.items()}, assign=True)
    answer_beside_zeros = image()
    pipe.unet.load_state_dict(weights, assign=True)
    loaded.restore()
    return {
        "names": list(loaded.modules),
        "off_by": float((answer - torch.load(folder / IMAGE)).abs().max()),
        "moved_by": float((answer - before).abs().max()),
        "engines_answer": torch.equal(answer_beside_zeros, answer),
        "read": read,
        "restored": torch.equal(image(), before),
        "attributes_restored": attributes_of(pipe) == attributes,
    }


def attributes_of(pipe: Any) -> dict[str, list[str]]:
    """The names of the attributes of all modules of a pipeline."""
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {
        name: [attribute for module in part.modules() for attribute in vars(module)] for name, part in parts.items()
    }


def what_pipelines_read(pipe: Any) -> dict[str, Any]:
    """Attributes by which pipelines of diffusers choose sizes, dtypes and devices."""
    return {
        "unet.config.in_channels": pipe.unet.config.in_channels,
        "unet.dtype": str(pipe.unet.dtype),
        "vae.config.scaling_factor": pipe.vae.config.scaling_factor,
        "text_encoder.device": str(pipe.text_encoder.device),
        "device": str(pipe.device),
        "components": pipe.components["unet"] is pipe.unet,
    }


def main(folder: Path) -> None:
    """Deploy in a process of its own; then load in this one."""
    logging.set_verbosity_error()  # transformers says that torchvision is missing
    example = runpy.run_path(EXAMPLE)
    deploying = multiprocessing.get_context("fork").Process(target=deploy_and_save, args=(folder,))
    deploying.start()
    deploying.join()
    assert deploying.exitcode == 0
    sys.stdout.write(json.dumps(load_and_look(folder, example)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
