"""Known-answer neurons: invented ones, whose true description is known, over texts of our own."""
