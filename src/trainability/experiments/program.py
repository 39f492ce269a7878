"""What a recipe names, as objects: the data, the task, and what makes a network."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch

from trainability._references import is_reference, load, naming_the_place
from trainability.data import load as load_by_name
from trainability.data.dataset import Dataset, Split
from trainability.data.own import data_of, own_data
from trainability.errors import ConfigError
from trainability.experiments.recipe import Recipe
from trainability.introspect.outputs import in_dtype
from trainability.models.own import OwnModel
from trainability.tasks import Task
from trainability.tasks.kinds.own import Own

if TYPE_CHECKING:
    from torch import nn

Resolve = Callable[[str], Any]


@dataclass(frozen=True)
class Program:
    """The data of a recipe, and the objects behind the names of the user's own that it holds.

    Args:
        data: the data set.
        resolve: from a reference such as ``mine.py:make_model`` to the object.
    """

    data: Dataset
    resolve: Resolve = load

    @classmethod
    def of(cls, recipe: Recipe, resolve: Resolve = load) -> "Program":
        """Load the data of a recipe.

        Raises:
            DataError: they cannot be loaded, or have another form.
            ConfigError: a function of the user's own is not there, or raises.
        """
        data = _data(recipe, resolve)
        if recipe.task.task().reconstructs and data.mean is not None:
            data = data.reconstructing()
        return cls(data, resolve)

    def task(self, recipe: Recipe) -> Task:
        """The task of a recipe."""
        return recipe.task.task(self.resolve) if isinstance(recipe.task, Own) else recipe.task.task()

    def network(self, recipe: Recipe) -> "nn.Module":
        """The network of a recipe, with the weights that torch's random state gives it.

        Raises:
            ConfigError: the number of outputs cannot be told from the data.
        """
        model = recipe.network()
        if isinstance(model, OwnModel):
            with naming_the_place(model.name):
                return model.built_by(self.resolve(model.name))
        outputs = prod(self.data.shape) if self.data.reconstructs else self.data.classes
        if outputs is None:
            raise ConfigError(
                f"model.name: {model.name} needs to know how many outputs {self.data.name} asks for; return a mapping "
                "of 'train', 'validation' and 'classes'",
                code="outputs-unknown",
            )
        return model.build(self.data.shape, outputs)

    def samples(self, model: "nn.Module", count: int) -> tuple[Any, Any]:
        """The first training samples as a model takes them: inputs and targets."""
        return self.as_taken(model, self.data.train.first(count))

    def as_taken(self, model: "nn.Module", samples: Split) -> tuple[Any, Any]:
        """Inputs and targets in the precision of a model."""
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
        inputs, targets = self.data.prepared(samples)
        return in_dtype(inputs, dtype), in_dtype(targets, dtype)


def references(recipe: Recipe) -> list[str]:
    """Every reference to something of the user's own in a recipe, once."""
    names = [recipe.model.name, recipe.data.name]
    if isinstance(recipe.task, Own):
        names += [recipe.task.loss, *(metric["of"] for metric in recipe.task.metrics.values())]
    return [name for name in dict.fromkeys(names) if is_reference(name)]


def _data(recipe: Recipe, resolve: Resolve) -> Dataset:
    given = recipe.data
    if given.own:
        with naming_the_place(given.name):
            return own_data(data_of(resolve(given.name), given.options), given.name)
    return load_by_name(
        given.name,
        given.dir,
        hub=given.hub,
        held_out=given.held_out,
        image_size=given.image_size,
        classes=given.classes,
        per_class=given.per_class,
        pln=given.pln,
    )
