"""What the checker knows about a value: `Kind`, and how kinds join.

Enters: facts from annotations, dumps and literals. Leaves: comparable values. A room of its own because the API model,
the source model and the inference all speak in kinds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """What is known about a value.

    what:
        "api" the bindings module · "class" and "instance" of the bindings, by name · "method" of the bindings ·
        "plain" a scalar from the bindings, by its Python type · "unknown" from the bindings, of a type nobody states ·
        "absent" an object of a class, or a member, that this version lacks ·
        "flag" a bool that the version decides · "text" one of some known strings · "has" the feature test ·
        "module", "function", "type", "object" of the source · "alias" a name for annotations · "typevar" ·
        "union", "many" (iterable), "tuple", "dict" (key, value), "context", "callable" of `parts` ·
        "operation" a container's own method ·
        "none" · "any" declared Any · "foreign" another package · "other" nothing of TensorRT.
    ref: the function, class, module, method, strings or bool behind it.
    """

    what: str
    name: str = ""
    parts: tuple[Kind, ...] = ()
    ref: Any = None

    def flat(self) -> Iterator[Kind]:
        """The alternatives: a union's parts, or the kind itself."""
        yield from self.parts if self.what == "union" else (self,)

    @property
    def tensorrt(self) -> bool:
        """Whether it is, or holds, an object of the bindings."""
        return self.what in ("api", "instance", "class", "method") or any(part.tensorrt for part in self.parts)

    @property
    def tracked(self) -> bool:
        """Whether an annotation that gives this kind says more than the value could."""
        return self.what in ("api", "instance", "class", "absent", "object", "type", "typevar") or any(
            part.tracked for part in self.parts
        )


OTHER, FOREIGN, NONE, ANY = (Kind(what) for what in ("other", "foreign", "none", "any"))
ABSENT, API = Kind("absent"), Kind("api")
TRUE, FALSE = Kind("flag", ref=True), Kind("flag", ref=False)


def union(kinds: Iterable[Kind]) -> Kind:
    """Join alternatives; one alone stays itself, no alternative is "other"."""
    given = list(kinds)
    if given and all(kind is given[0] for kind in given):  # most calls; hashes of what is nested take long
        return given[0]
    flat = tuple(dict.fromkeys(part for kind in given for part in kind.flat()))
    texts = [part for part in flat if part.what == "text"]
    if len(texts) > 1:
        flat = (*(p for p in flat if p.what != "text"), text(name for part in texts for name in part.ref))
    if len(flat) <= 1:
        return flat[0] if flat else OTHER
    return Kind("union", parts=flat)


def text(strings: Iterable[str]) -> Kind:
    """The kind of a string that is one of these."""
    return Kind("text", ref=frozenset(strings))


def telling(kind: Kind, depth: int = 5) -> Kind:
    """Leave out what says nothing and what is nested too deep, so that kinds stay small."""
    if not kind.parts or kind.what == "function":
        return kind
    parts = tuple(telling(part, depth - 1) for part in kind.parts) if depth else ()
    if all(part in (OTHER, NONE, FOREIGN) for part in parts):
        return OTHER
    return union(parts) if kind.what == "union" else Kind(kind.what, kind.name, parts, kind.ref)


def many(element: Kind) -> Kind:
    """The kind of a list, set, sequence or iterator of elements."""
    return Kind("many", parts=(element,))


def truth(kind: Kind) -> bool | None:
    """Tell what `if` makes of it: True, False, or None where either may come."""
    if kind.what == "flag":
        return kind.ref
    return False if absent(kind) else None


def absent(kind: Kind) -> bool:
    """Tell whether this version can only have None there."""
    return kind is ABSENT or (kind.what == "union" and ABSENT in kind.parts and set(kind.parts) <= {ABSENT, NONE})


def flag(value: bool | None) -> Kind:
    """The kind of a bool that this version decides; "other" if it doesn't."""
    return OTHER if value is None else TRUE if value else FALSE


def element(kind: Kind) -> Kind | None:
    """What iterating over a container gives; None if the kind is no container."""
    if kind.what in ("many", "dict"):
        return kind.parts[0]
    if kind.what == "tuple":
        return union(kind.parts)
    return None
