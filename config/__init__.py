"""Presets: values only; the schemas are the dataclasses beside the classes they configure."""
