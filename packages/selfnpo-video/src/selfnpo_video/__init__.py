"""Self-NPO for video diffusion transformers (CogVideoX, Wan)."""
