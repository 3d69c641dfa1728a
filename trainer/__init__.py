"""Train SUM on shards and human masks, judge it, and use it.

    from sum_factory.trainer import Recipe, evaluate, fit, load_model

What is named here is imported when it is first used.
"""

from typing import TYPE_CHECKING

from sum_factory.shared.lazy import lazily

if TYPE_CHECKING:
    from sum_factory.trainer.data.torch_datasets import HumanDataset as HumanDataset
    from sum_factory.trainer.data.torch_datasets import ShardDataset as ShardDataset
    from sum_factory.trainer.data.torch_datasets import ShuffledDataset as ShuffledDataset
    from sum_factory.trainer.evaluation.in_memory import evaluate as evaluate
    from sum_factory.trainer.predict import Predictor as Predictor
    from sum_factory.trainer.predict import load_model as load_model
    from sum_factory.trainer.recipe import Recipe as Recipe
    from sum_factory.trainer.training import fit as fit

PLACES = {
    "HumanDataset": "sum_factory.trainer.data.torch_datasets",
    "Predictor": "sum_factory.trainer.predict",
    "Recipe": "sum_factory.trainer.recipe",
    "ShardDataset": "sum_factory.trainer.data.torch_datasets",
    "ShuffledDataset": "sum_factory.trainer.data.torch_datasets",
    "evaluate": "sum_factory.trainer.evaluation.in_memory",
    "fit": "sum_factory.trainer.training",
    "load_model": "sum_factory.trainer.predict",
}
"""Where each public name of the package is."""

__getattr__ = lazily(__name__, PLACES)
