"""The version of this package."""

VERSION = "0.1.0"
COMPATIBLE_WITH = "0.16.0"
"""The version of the original daemon whose API this node speaks; clients refuse what they think is older than 0.15.2."""
