"""The robots' own environments, with flat observations and actions in [-1, 1]."""
