"""Makes methods run: choice, fitting, tiles, devices."""
