"""Virtual clients: the strategies that drive the fleet's rounds, over many clients in one process."""
