"""The command line: an umbrella over the packages' own commands, and the demo with its digits task."""
