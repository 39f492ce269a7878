"""The kinds of input there are."""

from tests.fuzz.commands import flags
from tests.fuzz.core import Kind
from tests.fuzz.models import models
from tests.fuzz.recipes import recipes
from tests.fuzz.tensors import tensors

KINDS: dict[str, Kind] = {"recipes": recipes, "flags": flags, "tensors": tensors, "models": models}
