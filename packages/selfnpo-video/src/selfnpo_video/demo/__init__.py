"""A world of moving shapes drawn by code, a CogVideoX model of it, and what can be measured there."""
