"""The training engine that every model family uses."""
