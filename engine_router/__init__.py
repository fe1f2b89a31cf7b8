"""One port in front of many local engines that share one memory."""
