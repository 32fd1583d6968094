"""Outer tasks and their data: the table of tasks, the robots' environments, datasets and scores.

Importing this package is free; `tasks` and `scores` need no simulator, `outer` imports gymnasium
and mujoco, `datasets` reads Minari's local store. Nothing here knows of agents or of learning.
"""
