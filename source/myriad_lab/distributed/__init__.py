"""Processes that share tensors: weight mailbox, counted tokens, supervised workers."""
