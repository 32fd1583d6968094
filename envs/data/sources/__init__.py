"""Where datasets come from: built here, downloaded, imported."""
