"""Base models: where they come from, what the engine asks of them, how their weights and embeddings are kept."""
