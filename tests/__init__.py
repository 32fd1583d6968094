"""The default suite: `pytest`; with the minutes-long ones: `pytest -m "slow or not slow"`."""
