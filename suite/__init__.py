"""Everything on one machine: `python -m suite` prepares, starts, watches and stops the parts of Parley.

It owns the data folder, the child processes and their order. It knows the services only by their command lines, their
environment and their health; it never imports one, and no service knows of it.
"""
