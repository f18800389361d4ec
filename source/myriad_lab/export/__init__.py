"""Exported policies: ONNX, TorchScript, their contract, and the check that they are right."""
