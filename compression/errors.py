"""Errors of compression, grouped by who is at fault.

CompressionError
├── UnsupportedLayerError    a layer that cannot be trained on a device, or not pruned
├── StageError              a stage that began and cannot end, training that diverged for example
├── ConversionError          the converter refused the model
├── ArtifactError           a `.tflite` that cannot be read, run or measured
├── RecipeError              a recipe that does not exist or asks for data that are not there
├── BenchError               a device that did not measure a bundle
├── GateError                no variant is good enough to ship
├── BudgetError              a budget that cannot be read
└── SearchError              a search that cannot begin or go on
"""


class CompressionError(Exception):
    """Root of every error that `compression` raises on purpose."""


class UnsupportedLayerError(CompressionError):
    """A layer that cannot be trained on a device, or not pruned; the message names it and what to use instead."""


class StageError(CompressionError):
    """A stage that began and cannot end, training that diverged for example."""


class ConversionError(CompressionError):
    """The converter refused the model."""


class ArtifactError(CompressionError):
    """A `.tflite` that cannot be read, run or measured."""


class RecipeError(CompressionError):
    """A recipe that does not exist, or one that asks for data that are not there."""


class BenchError(CompressionError):
    """A device did not measure a bundle; the message has its reason."""


class GateError(CompressionError):
    """No variant is good enough to ship."""


class BudgetError(CompressionError):
    """A budget that cannot be read; the message holds the term at fault."""


class SearchError(CompressionError):
    """A search that cannot begin, or not go on from what its folder holds."""
