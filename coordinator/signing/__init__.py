"""Trust in artifacts: the TUF repository, what waits for a signature, and the signer's own process."""
