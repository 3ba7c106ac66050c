"""The two brokers we run ourselves: embedded (amqtt) and Mosquitto. Both demand a client certificate.

A client's identity is the common name of its certificate, which must also be its MQTT client id. `acl` says who may
speak and listen where.
"""
