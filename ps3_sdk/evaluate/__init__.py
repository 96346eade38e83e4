"""ps3 eval: how often a bundle is right, where it looked, and how long it took. docs/evaluation.md tells the formats and every figure."""
from .items import Item, ItemList
from .questions import read_questions
from .run import evaluate
from .scene_items import SceneItems
from .vstar import read_vstar

__all__ = ["Item", "ItemList", "SceneItems", "evaluate", "read_questions", "read_vstar"]
