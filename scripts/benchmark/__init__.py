"""What the scripts that measure share: places to measure, works to do there, and how the figures are shown."""
