"""The small world of stage two: pairs, weights, a tiny model."""

from tests.pipeline.train.conftest import empty_world, one_thread, tiny_folder, world

__all__ = ["empty_world", "one_thread", "tiny_folder", "world"]
