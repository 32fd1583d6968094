"""Recorded behaviour: Minari's local store, loading, describing."""
