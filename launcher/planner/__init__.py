"""What a run will need, and what is done about it while it serves: forecast and caps."""
