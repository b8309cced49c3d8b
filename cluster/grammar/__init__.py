"""Grammars of answers: compiling them, and finding out beforehand, at bounded cost, whether that works.

Part of the floor: routers check a grammar before they accept a request, engines follow it. Knows no requests.
"""
