"""From a model version to what a device downloads: variants, their measured reports, gates and the bundle's parts."""
