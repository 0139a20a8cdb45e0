"""A small world of drawn pictures with a real Stable Diffusion pipeline trained on it, to see the whole method at work."""
