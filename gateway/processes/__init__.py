"""Processes: who starts whom, and how the halves speak when they are apart.

    supervisor ─┬─ control     doors/http/admin, control/, every foreign system
                └─ worker 1..N doors/http/inference, serving/

What belongs here: the supervisor, the main of each process, the link between them, and `Fleet`,
which makes one data plane of many workers. What does not: anything that decides or serves.
The supervisor imports next to nothing; a worker imports nothing that speaks to Redis, a collector
or the disk's records. Imported by the front step only.
"""
