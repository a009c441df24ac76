"""Who decides whether a call runs: a mode, rules the user has made for this folder, or the user."""
