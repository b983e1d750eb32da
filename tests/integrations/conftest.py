"""The tiny world of the trainer's tests, for trainers of others."""

from tests.pipeline.train.conftest import empty_world, one_thread, tiny_folder, world

__all__ = ["empty_world", "one_thread", "tiny_folder", "world"]
