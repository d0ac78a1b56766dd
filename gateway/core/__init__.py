"""Decides; pure.

What belongs here: data that is served and the functions that decide over it.
What does not: I/O, clocks, randomness, threads, async code, foreign services.
Time and randomness come in as arguments, so every decision here can be made again offline.
Anyone may import this room; it imports nothing of the others.
"""
