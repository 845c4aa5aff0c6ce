"""Measurements of the whole, beside the bare tools in the same run."""
