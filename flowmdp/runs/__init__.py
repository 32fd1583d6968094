"""One run: train, evaluate, record and draw it, in a folder of its own."""
