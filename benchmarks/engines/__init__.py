"""Engines under one protocol: a child process that reads jobs as JSON lines and answers each with its times."""
