"""Samples that end the process which decodes them: how they are noticed, found, and kept out from then on.

A process marks what it works on (`marks`); marks that outlive their processes say where to look; suspects are decoded
one by one in a process that may die (`sandbox`); what dies there too is refused for the rest of the run (`refused`).

The index reads shards in processes that may die (`children`), and images of a shard over which one died apart
(`image_sandbox`).
"""
