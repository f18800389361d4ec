"""Preallocated buffers on the device."""
