"""Who the clients are, and how much each of them may take."""
