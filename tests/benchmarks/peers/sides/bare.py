"""No queue at all: ``python bare.py COUNT`` computes in two processes; prints the seconds as JSON."""

import json
import os
import sys
import time

from harness import spin

count = int(sys.argv[1])
began = time.monotonic()
child = os.fork()
for _ in range(count // 2):
    spin()
if child == 0:
    os._exit(0)
os.waitpid(child, 0)
print(json.dumps({"began": began, "seconds": [time.monotonic() - began]}))
