"""Between MQTT and the services: checks what devices send, commits it once, and sends what they should know."""
