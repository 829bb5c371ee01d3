"""`torch2engine.exporter.torch_program`: what fails in the exporter is named as the user wrote it."""

from __future__ import annotations

import torch
from torch import nn

from tests.support.models import line_of
from torch2engine.exporter.torch_program import _decomposed, failed_node

OPSET = 20


class Losses(nn.Module):
    """An operator that torch takes apart, alone in its line and beside another one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        doubled = x * 2
        alone = torch.ops.aten.huber_loss(x, doubled)
        return alone + torch.ops.aten.huber_loss(doubled, x)


def part_in(program: torch.export.ExportedProgram, line: str) -> str:
    """The name of a part that torch makes of the operator in a line of `Losses`."""
    written = {node.name for node in program.graph.nodes}
    nodes = [node for node in _decomposed(program, OPSET)[0].graph.nodes if node.name not in written]
    return next(node.name for node in nodes if line in node.meta["stack_trace"])


def test_part_of_an_operator_is_named_as_the_operator_where_its_line_has_but_one() -> None:
    """The user wrote huber_loss, and the exporter fails at a part of it; beside another one the part is named."""
    program = torch.export.export(Losses(), (torch.ones(4, 3),))
    names = ["mul", part_in(program, "alone = "), part_in(program, "return alone"), "unheard_of"]
    found = [failed_node(program, name, "aten.told", "why", OPSET) for name in names]
    assert [(node.op.split(".")[1], node.source) for node in found] == [
        ("mul", line_of(Losses, "x * 2")),
        ("huber_loss", line_of(Losses, "alone = ")),
        (names[2].split("_")[0], line_of(Losses, "return alone")),
        ("told", ""),
    ]
    assert {node.reason for node in found} == {"why"}
