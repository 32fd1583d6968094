"""The `flowmdp` command: the one package that puts environments, data and agents together."""
