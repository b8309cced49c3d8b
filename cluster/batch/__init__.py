"""Offline inference: a file of prompts in, a file of answers out. Knows files and the public API; starts no region."""
