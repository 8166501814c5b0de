"""The context domain: what a conversation is, what of it a model should see, and where the rest is kept.

Programs import from here; nothing is loaded before it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memory.blocking import LLMMemoryManager as LLMMemoryManager
    from memory.nouns import Agent as Agent
    from memory.nouns import CompressionStrategy as CompressionStrategy
    from memory.nouns import HumanRequest as HumanRequest
    from memory.nouns import MemoryApproach as MemoryApproach
    from memory.nouns import MemoryItem as MemoryItem
    from memory.nouns import MemoryStateSnapshot as MemoryStateSnapshot
    from memory.nouns import QuarantinedContext as QuarantinedContext
    from memory.nouns import Task as Task
    from memory.nouns import TaskStatus as TaskStatus

HOMES = {
    "Agent": "memory.nouns",
    "CompressionStrategy": "memory.nouns",
    "HumanRequest": "memory.nouns",
    "LLMMemoryManager": "memory.blocking",
    "MemoryApproach": "memory.nouns",
    "MemoryItem": "memory.nouns",
    "MemoryStateSnapshot": "memory.nouns",
    "QuarantinedContext": "memory.nouns",
    "Task": "memory.nouns",
    "TaskStatus": "memory.nouns",
}

__all__ = list(HOMES)


def __getattr__(name: str) -> object:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)
