"""The interface of an engine: jobs in, results out, and no trace in them of who did the work."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

Job = TypeVar("Job")
Shared = TypeVar("Shared")
Result = TypeVar("Result")
Run = Callable[[Sequence[Job]], Iterable[Result]]


class Engine(ABC):
    """Maps jobs to results over processes, in rounds."""

    @abstractmethod
    def start(
        self, function: Callable[[Job, Shared], Result], shared: Shared
    ) -> AbstractContextManager[Run[Job, Result]]:
        """Return a context that gives a function from jobs to the results `function(job, shared)`, in any order.

        Args:
            function: a module's own function, so that it can be named in another process.
            shared: pickled once for each process, which keeps it: models that it loads stay loaded.

        Raises:
            UserError: the engine cannot start. An exception of a job is raised here, in the caller.
        """
