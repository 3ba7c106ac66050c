"""Sources of samples: plug-ins in the entry-point group `fieldfare.sources`, and the worker that pulls from one."""
