"""Federated rounds: Flower's strategies over devices that do not have Flower.

The run is a process of its own (`job`). It and the coordinator's gateway meet only in the database (`mailbox`), so
that each may be killed at any moment. Read `loop`, then `grid`, then `mqtt_grid`; `flower` alone touches what Flower
keeps private.
"""
