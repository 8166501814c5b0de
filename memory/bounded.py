"""A mapping that forgets what was used longest ago, so that no cache of ours grows without end."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Bounded(Generic[K, V]):
    """Least recently used goes first.

    Args:
        most: of all entries together, in whatever unit `weigh` gives of one.
        evicted: is told what went for lack of room.
    """

    def __init__(
        self,
        most: int,
        weigh: Callable[[V], int] = lambda value: 1,
        evicted: Callable[[K, V], None] = lambda key, value: None,
    ) -> None:
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._most = most
        self._weigh = weigh
        self._evicted = evicted
        self._weight = 0
        self._lock = Lock()  # folding runs in threads

    def get(self, key: K) -> V | None:
        with self._lock:
            value = self._entries.get(key)
            if value is not None:
                self._entries.move_to_end(key)
            return value

    def among(self, keys: Iterable[K]) -> list[tuple[K, V]]:
        """Those of the keys that are here, with their values, in the order asked."""
        present = [key for key in keys if key in self._entries]
        return [(key, value) for key in present if (value := self.get(key)) is not None]

    def put(self, key: K, value: V) -> None:
        with self._lock:
            old = self._entries.pop(key, None)
            self._weight += self._weigh(value) - (self._weigh(old) if old is not None else 0)
            self._entries[key] = value
            while self._weight > self._most and len(self._entries) > 1:
                name, gone = self._entries.popitem(last=False)
                self._weight -= self._weigh(gone)
                self._evicted(name, gone)

    def drop(self, key: K) -> None:
        with self._lock:
            value = self._entries.pop(key, None)
            self._weight -= self._weigh(value) if value is not None else 0

    def drop_where(self, is_unwanted: Callable[[K], bool]) -> None:
        """Looks at every key."""
        with self._lock:
            for key in [key for key in self._entries if is_unwanted(key)]:
                self._weight -= self._weigh(self._entries.pop(key))

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self._weight = 0

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)
