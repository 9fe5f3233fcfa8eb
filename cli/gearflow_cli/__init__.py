"""The ``gearflow`` command. Each module is one command, or one thing that commands share.

Modules import the library inside their functions: ``gearflow --help`` must not wait for it.
"""
