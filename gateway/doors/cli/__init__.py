"""The command line: the same admin API that everybody has, with tables and exit codes.

What belongs here: reading arguments, asking the admin API, showing the answer. What does not:
deciding anything. What a command needs of the rooms above (`serve`, `check`) is handed in.
"""
