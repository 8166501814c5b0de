"""The adapters that an engine knows: each lies where adapters do, and was looked at before anything loads it."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

from memory.slm.adapters import Adapter, BadAdapter, Foundation, open_adapter

MOST_LOADED = 4  # at once; of more the one that was used longest ago is loaded again when it is asked for
MOST_KNOWN = 256


class KnownAdapters:
    """For one thread at a time; `adapters` may be read at any time."""

    def __init__(self, home: Path | None, foundation: Callable[[], Foundation]) -> None:
        """
        Args:
            home: of adapters; what lies elsewhere is not loaded. None: nothing is.
            foundation: what an adapter has to fit; asked for once, when the first one comes.
        """
        self._home = home
        self._foundation = cache(foundation)
        self.adapters: dict[str, Adapter] = {}

    def look(self, name: str, path: str) -> Adapter:
        """What lies in a folder; it is not known by that yet.

        Raises:
            BadWeights: it must not be loaded, lies elsewhere than adapters do, or there are too many.
        """
        adapter = open_adapter(self._placed(path), self._foundation())
        if name not in self.adapters and len(self.adapters) >= MOST_KNOWN:
            raise BadAdapter(f"this engine knows {MOST_KNOWN} adapters already; unload one")
        return adapter

    def again(self, name: str) -> Adapter:
        """One that is known, looked at anew.

        Raises:
            BadWeights: its folder has gone, or is no longer what it was.
            KeyError: it is not known.
        """
        return open_adapter(self.adapters[name].folder, self._foundation())

    def _placed(self, path: str) -> Path:
        """The folder; told nothing of what lies elsewhere, not even whether it is there."""
        if self._home is None:
            raise BadAdapter("this engine was started without a home of adapters")
        home, folder = self._home.resolve(), Path(path)
        if "\0" in path or not folder.is_absolute() or not folder.resolve().is_relative_to(home):
            raise BadAdapter("an adapter must lie where this engine's adapters do")
        return folder
