"""Kubernetes from inside a pod: where controllers are, what nodes say of their links, who is about to leave.

`objects` decides, `watch` follows, `account` connects. Whoever does not configure it never imports the client library.
"""
