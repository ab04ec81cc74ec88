"""The engine of training: options and session of a command, recipes, the loop and its run folder."""
