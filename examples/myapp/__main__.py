"""Calls the tasks: ``python -m myapp`` in the directory ``examples``, beside a server and a worker."""

from .tasks import add, brew

print(add.call(1, b=2))

job = brew.submit(2)
print("the kettle is on")
print(job.result(timeout=10))

for tea in brew.map([1, 2, 3]):
    print(tea)
