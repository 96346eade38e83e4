"""Frames of any size with questions, answers and boxes, made from a seed: data to train and evaluate on."""
from .prompts import Question
from .scenes import Item, Scene, Scenes

__all__ = ["Item", "Question", "Scene", "Scenes"]
