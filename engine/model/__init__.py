"""What everything else speaks of: errors, keys, values, limits, settings and retry policies."""
