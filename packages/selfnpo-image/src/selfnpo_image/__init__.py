"""Self-NPO for image diffusion models."""
