"""A world of things in motion, drawn by code, a CogVideoX model of it, and what can be measured there."""
