"""The registry: models, their immutable versions, compressed variants, data snapshots, and bundles."""
