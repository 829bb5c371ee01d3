"""All entries of the zoo by name.

Enters: the lists. Leaves: `ZOO`. Apart so that whoever runs the models needs to know one name.
"""

from __future__ import annotations

from tests.zoo.entry import ZooEntry
from tests.zoo.own_sequences import OWN_SEQUENCES
from tests.zoo.own_vision import OWN_VISION
from tests.zoo.timm_models import TIMM
from tests.zoo.torchvision_models import TORCHVISION
from tests.zoo.transformers_audio import TRANSFORMERS_AUDIO
from tests.zoo.transformers_mixed import TRANSFORMERS_MIXED
from tests.zoo.transformers_text import TRANSFORMERS_TEXT
from tests.zoo.transformers_vision import TRANSFORMERS_VISION

__all__ = ["LISTS", "ZOO"]

LISTS = (
    TIMM,
    TORCHVISION,
    TRANSFORMERS_TEXT,
    TRANSFORMERS_VISION,
    TRANSFORMERS_AUDIO,
    TRANSFORMERS_MIXED,
    OWN_VISION,
    OWN_SEQUENCES,
)

ZOO: dict[str, ZooEntry] = {name: entry for entries in LISTS for name, entry in entries.items()}
