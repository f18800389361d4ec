"""Public learners of others beside ours: drivers that run their own training scripts, from a checkout, on our envs."""
