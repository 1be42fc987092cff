"""How fast a sweep is on this machine: `fastexplain bench`."""
