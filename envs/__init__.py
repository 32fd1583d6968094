"""Outer tasks and their data: the table of tasks, the robots' environments, datasets and scores.

`tasks` and `scores` need no simulator. Nothing here knows of agents or of learning.
"""
