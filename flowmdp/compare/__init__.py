"""Many runs: tables of them, their results, and what can be said about those."""
