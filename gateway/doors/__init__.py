"""Speaks protocols and translates; decides nothing.

What belongs here: HTTP and the command line, from bytes to calls and back. What does not: rules,
storage, models. May import control, serving and core; never adapters.
"""
