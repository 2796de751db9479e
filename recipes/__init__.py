"""Numbers: one YAML file per method, read through `medssl.config`."""
