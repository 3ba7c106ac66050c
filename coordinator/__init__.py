"""The control plane: what is registered, who is enrolled, what should run where, and what the fleet reports.

Read `storage`, then one sub-package (each has tables, a service, routes and commands), then `app`, which puts
them together.
"""
