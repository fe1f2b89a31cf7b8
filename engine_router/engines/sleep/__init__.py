"""Sleep instead of stop: engines that give most of their memory back and keep what made their start slow."""
