#!/usr/bin/python3
"""Looks through all of its memory for a secret; QUERY_STRING has it with each byte one more, so that it is not there
for having been asked for, nor made by looking."""
import os, sys

sys.stdin.read()
wanted = os.environ["QUERY_STRING"].encode()
one_more = bytes((n + 1) % 256 for n in range(256))
found = 0
with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
    for line in maps.readlines():
        area, rights = line.split()[:2]
        if rights[0] != "r" or "[v" in line:
            continue
        start, end = (int(n, 16) for n in area.split("-"))
        for at in range(start, end, 1 << 20):
            try:
                data = os.pread(memory.fileno(), min((1 << 20) + 64, end - at), at)
            except OSError:
                continue
            if data.translate(one_more).find(wanted) >= 0:
                found += 1
print("X: y\n")
print("found" if found else "clean")
