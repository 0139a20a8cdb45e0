"""Self-NPO for video diffusion transformers (CogVideoX). The model family arrives in a later release."""
