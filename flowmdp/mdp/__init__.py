"""The flow MDP as pure functions: transition, paths, solvers, rewards, and its specification."""
