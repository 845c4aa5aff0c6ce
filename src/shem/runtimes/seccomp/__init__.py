"""The system calls a sandbox may make: one list, compiled to a kernel filter or rendered for an OCI runtime."""
