"""The kinds of input there are."""

from .commands import flags
from .core import Kind
from .models import models
from .recipes import recipes
from .tensors import tensors

KINDS: dict[str, Kind] = {"recipes": recipes, "flags": flags, "tensors": tensors, "models": models}
