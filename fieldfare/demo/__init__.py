"""The whole loop once, on real data and real processes, driven from outside: through the client and command lines."""
