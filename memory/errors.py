"""What can go wrong in the memory, drawn as a tree.

LLMMemoryError
  NotFound            no such item, session, turn
  InvalidRequest      the caller can fix it; names the field and the allowed values; a ValueError, too
    TooLarge          it is larger than we take
  Conflict            it is no longer in a state in which that can be done
  NotAllowed          only an authenticated person may do that
  CannotFit           even the smallest plan is over the limit
  ModelError          an embedder or a summariser did not do its work
    EngineError       what runs a local model does not start
  StoreError          PostgreSQL did not do its work
    StoreUnavailable  not reachable, too slow, or shutting down: try again later
      StoreBusy       somebody else has locked what is to be changed
    StoreRefused      it will never take this record
    SpoolError        the disk did not take the record either
"""


class LLMMemoryError(Exception):
    """Something in the memory went wrong."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())


class NotFound(LLMMemoryError):
    """There is no such thing in this tenant."""

    def __init__(self, message: str = "There is no such thing in this tenant.", field: str | None = None) -> None:
        super().__init__(message)
        self.field = field

    @classmethod
    def of(cls, field: str) -> "NotFound":
        """For an id that names nothing, be it foreign, unknown or malformed: all are told alike."""
        return cls(f"{field} names nothing in this tenant", field)


class InvalidRequest(LLMMemoryError, ValueError):
    """The request cannot be carried out as it stands."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class TooLarge(InvalidRequest):
    """What was given is larger than we take."""


class Conflict(LLMMemoryError):
    """It is no longer in a state in which that can be done."""

    def __init__(self, message: str | None = None, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class NotAllowed(LLMMemoryError):
    """Only an authenticated person may do that."""


class CannotFit(LLMMemoryError):
    """System prompt, tools and the newest message alone are over the model's limit."""


class ModelError(LLMMemoryError):
    """The embedder or summariser did not answer."""


class EngineError(ModelError):
    """What runs a local model does not start."""


class StoreError(LLMMemoryError):
    """The database refused."""


class StoreUnavailable(StoreError):
    """The database cannot be reached or did not answer in time."""


class StoreBusy(StoreUnavailable):
    """Somebody else is changing the same; try again."""


class SpoolError(StoreError):
    """The spool file did not take the record."""


class StoreRefused(StoreError):
    """The database will never take this record."""
