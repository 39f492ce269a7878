"""The one exception type of the library that is not a plain ValueError or TypeError."""


class UnsupportedModelError(ValueError):
    """A model, or one layer of it, that an operation cannot handle.

    ``path`` is the fully qualified name of the module concerned (``""`` for the whole model). The
    message says what was found there and what to do instead.
    """

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(f"{path or 'the model'}: {problem}")

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.path, self.problem)
