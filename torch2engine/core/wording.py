"""Words of messages: a value's kind, the name that a misspelt one may stand for, other libraries' words, and tables.

Enters: a value, a name and the valid ones, another library's error, or cells. Leaves: text. Separate because every
folder words its errors alike.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Container, Iterable, Sequence

__all__ = ["aligned", "did_you_mean", "first_line", "kind_of", "quote", "with_article", "without_terminal_codes"]

_VOWELS = "aeiou"
_SPOKEN_WITH_A_VOWEL = "AEFHILMNORSX"  # letters whose own names begin with a vowel, as in "an MLP"
_SPOKEN_WITH_A_CONSONANT = ("uni", "use", "uint", "unet", "eu", "one")


_TERMINAL_CODE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_LONGEST_QUOTE = 300  # characters
_LEAST_PART = 3  # letters that stand for a longer name


def with_article(noun: str) -> str:
    """A noun with "a" or "an".

    >>> with_article("int"), with_article("UNet"), with_article("MLP"), with_article("Tensor")
    ('an int', 'a UNet', 'an MLP', 'a Tensor')
    """
    is_acronym = noun[:2].isupper() and not noun.startswith("U")
    if is_acronym:
        vowel = noun[0] in _SPOKEN_WITH_A_VOWEL
    else:
        lowered = noun.lower()
        vowel = lowered.startswith("ndarray") or (
            lowered[:1] in _VOWELS and not lowered.startswith(_SPOKEN_WITH_A_CONSONANT)
        )
    return f"an {noun}" if vowel else f"a {noun}"


def kind_of(value: object) -> str:
    """Name the kind of a value, e.g. "an int", "the class Net" or "None".

    >>> kind_of(3), kind_of(int), kind_of(None)
    ('an int', 'the class int', 'None')
    """
    if value is None:
        return "None"
    return f"the class {value.__name__}" if isinstance(value, type) else with_article(type(value).__name__)


def did_you_mean(name: object, names: Iterable[object], given: Container[object] = ()) -> str:
    """A question for the fix of a message: the valid name that is most like a misspelt one, or "".

    Letters' case and the signs between words do not count. A part of one valid name stands for it. Names that the
    caller has also given are no candidates.

    >>> did_you_mean("FP-16", ["fp16", "int8"]), did_you_mean("onnx", ["tensorrt", "onnxruntime"])
    ("did you mean 'fp16'?", "did you mean 'onnxruntime'?")
    >>> did_you_mean("batch", ["time"])
    ''
    """
    by_letters = {_letters(valid): valid for valid in names if isinstance(valid, str) and valid not in given}
    if not isinstance(name, str):
        return ""
    letters = _letters(name)
    longer = [valid for valid in by_letters if len(letters) >= _LEAST_PART and letters in valid]
    close = longer if len(longer) == 1 else difflib.get_close_matches(letters, by_letters, n=1, cutoff=0.6)
    return f"did you mean {by_letters[close[0]]!r}?" if close else ""


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def without_terminal_codes(text: str) -> str:
    r"""A text without the codes by which a terminal shows colours.

    >>> without_terminal_codes("\x1b[31mred\x1b[0m")
    'red'
    """
    return _TERMINAL_CODE.sub("", text)


def quote(error: BaseException | str) -> str:
    r"""The first line of what another library says, as a short quotation.

    >>> quote(ValueError("\x1b[1mno such\x1b[0m node\nand more"))
    '"ValueError: no such node"'
    """
    plain = without_terminal_codes(str(error))
    line = next((line.strip() for line in plain.splitlines() if line.strip()), "")
    if isinstance(error, BaseException):
        line = f"{type(error).__name__}: {line}" if line else type(error).__name__
    return f'"{line[:_LONGEST_QUOTE]}{"..." if len(line) > _LONGEST_QUOTE else ""}"'


def first_line(error: BaseException) -> str:
    r"""The first line of an error's message, which says what is wrong in short.

    >>> first_line(ValueError("no such node\nand more"))
    'no such node'
    """
    return next(iter(str(error).splitlines()), type(error).__name__)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Write a table in plain text: a line for each row, with columns of one width, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
