"""What surrounds a run: its folder, environment and keys, and the processes that share it."""

from neuronforget.runs.runs import (
    cache_folder,
    check_folder,
    check_new,
    check_writable,
    content_key,
    environment,
    seed_everything,
    whole_file,
    whole_folder,
    writing,
)

__all__ = [
    "cache_folder", "check_folder", "check_new", "check_writable", "content_key", "environment", "seed_everything",
    "whole_file", "whole_folder", "writing",
]  # fmt: skip
