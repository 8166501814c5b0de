"""What the memory does, told to whoever counts it."""

from memory.nouns import HygieneReport, ItemForm
from memory.store.usage import Spent


class Meter:
    """Counts nothing. A program that shows numbers gives one of its own; calls come on the event loop, so be quick."""

    def added(self, form: ItemForm) -> None:
        """An item was stored, in a form."""

    def searched(self, plan: str, seconds: float) -> None:
        """Items were searched; the plans are those of `memory.search.Found`."""

    def retrieved(self, seconds: float) -> None:
        """An item was read by its id."""

    def asked(self, by: str, seconds: float) -> None:
        """A question was answered, by a "model", by the "passages" themselves, or by "nothing"."""

    def tidied(self, report: HygieneReport) -> None:
        """A session was tidied; a dry run is not told."""

    def quarantined(self, by: str) -> None:
        """Content was isolated, by a "person", a "detector" or a "program"."""

    def spent(self, spent: Spent) -> None:
        """A call of a model was written down, the first time."""


UNCOUNTED = Meter()
