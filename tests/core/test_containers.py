"""The table of container kinds: a new kind is one row of it, and no other place of the package knows the kinds."""

from __future__ import annotations

import json
from collections import deque

import pytest
import torch

from torch2engine.core.containers import CONTAINERS, Container
from torch2engine.core.errors import InputError
from torch2engine.core.json_rules import SchemaError
from torch2engine.core.pytree import bind, flatten, unflatten
from torch2engine.core.spec import Parameter
from torch2engine.core.structure import TREE_JSON


class Queue(deque):  # type: ignore[type-arg]  # of anything
    """A queue that PyTorch has not registered, as it has deque itself."""


X, Y = torch.ones(2), torch.zeros(3)
DEQUE = Container(
    kind="deque",
    matches=lambda value: isinstance(value, Queue),
    keys_of=lambda value: range(len(value)),
    children_of=lambda value, keys: (
        list(value) if isinstance(value, Queue) and len(value) == len(keys) else None  # pyright: ignore[reportUnknownArgumentType]  # a test
    ),
    rebuild=lambda cls, keys, children: cls(children),
    fits_class=lambda cls: issubclass(cls, Queue),
)


def test_new_kind_of_container_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its row a kind is taken apart, saved, loaded, matched with a call and rebuilt; without it, it is refused."""
    value = {"queue": Queue([X, Y])}
    with pytest.raises(InputError) as refused:
        flatten(value, "x")
    assert str(refused.value).startswith(
        "'x.queue': got a tests.core.test_containers.Queue; expected tensors, None, bool, "
    )
    monkeypatch.setitem(CONTAINERS, "deque", DEQUE)
    flat = flatten(value, "x")
    assert flat.names == ["x.queue.0", "x.queue.1"]
    written = json.loads(json.dumps(TREE_JSON.encode(flat.tree)))
    TREE_JSON.check(written, "output")
    loaded = TREE_JSON.decode(written)
    again = unflatten(loaded, [X, Y])
    assert type(again["queue"]) is Queue
    assert list(again["queue"]) == [X, Y]
    assert bind([Parameter("x", "positional", loaded)], (value,), {}) == [X, Y]
    with pytest.raises(InputError) as other:
        bind([Parameter("x", "positional", loaded)], ({"queue": Queue([X])},), {})
    assert str(other.value).startswith("argument 'x.queue': got a Queue; expected a Queue of 2: 0, 1; ")


def test_manifest_lists_the_kinds_of_the_table() -> None:
    """A kind that has no row is refused, and the error lists the rows."""
    with pytest.raises(SchemaError) as error:
        TREE_JSON.check({"kind": "set"}, "signature.output")
    kinds = (
        "'tensor', 'constant', 'argument', 'list', 'tuple', 'dict', 'namedtuple', 'sequence', 'dataclass', 'mapping', "
        "'registered'"
    )
    assert (error.value.got, error.value.allowed) == (
        "manifest field signature.output.kind = 'set'",
        f"one of {kinds}",
    )
