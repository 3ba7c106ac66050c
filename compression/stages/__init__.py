"""The stages that recipes are made of, one subject a module. Heavy libraries are imported when a stage runs."""
