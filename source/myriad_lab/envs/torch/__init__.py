"""Backend `torch`: dynamics written in batched torch."""
