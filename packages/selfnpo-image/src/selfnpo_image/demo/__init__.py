"""A small world of drawn pictures, and a real Stable Diffusion pipeline trained on it: the whole method in minutes."""
