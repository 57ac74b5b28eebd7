"""From a checkpoint to a model folder's weights."""
